#!/usr/bin/env bash
# A teacher of DDPM and one of flow matching, of equal size and trained alike, each distilled by every objective that it
# can teach: scored by benchmarks/few_steps.py. Animated emoji of 16 frames of 32x32 pixels, 8x8 latents, small networks:
# about two hours of one CPU core, and one more of scores. Stopped, it goes on when started again.
#
#   OUT     where everything is written  (outputs/objectives)
#   CLIPS   clips with captions          (../shared/data/fluent-emoji-anim; runs/prepare_emoji.py makes others)
#   CONTENTMOTION_I3D   I3D weights
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/objectives}
CLIPS=${CLIPS:-../shared/data/fluent-emoji-anim}
VAE=src/contentmotion/assets/emoji/vae
QUIET=(--report_to none --validation_steps 0 --checkpointing_steps 200)
SIZE=(--train_data_dir "$CLIPS" --vae $VAE --height 32 --width 32)

contentmotion train-autoencoder "${SIZE[@]}" --cache_latents true --max_train_steps "${AUTOENCODER_STEPS:-600}" \
    --train_batch_size 8 --learning_rate 1.5e-3 --lr_scheduler cosine --adam_beta2 0.99 --ema_decay 0.99 \
    --model.hidden_size 128 --model.depth 2 --model.num_heads 4 --model.head_dim 32 --model.mlp_ratio 2 \
    --model.content_mode frame "${QUIET[@]}" --output_dir "$OUT/autoencoder"
for split in train heldout; do
    contentmotion encode "${SIZE[@]}" --split $split --autoencoder "$OUT/autoencoder/autoencoder" --output_dir "$OUT/cache-$split"
done

for kind in v_prediction flow; do
    COMMON=(--latent_cache "$OUT/cache-train" --prediction_type $kind --learning_rate 1e-3 --lr_scheduler cosine --adam_beta2 0.99
        --adam_weight_decay 0.01 --ema_decay 0.995 "${QUIET[@]}")
    contentmotion train-content "${COMMON[@]}" --vae $VAE --max_train_steps "${CONTENT_STEPS:-2000}" --train_batch_size 24 \
        --model.block_out_channels 64 96 128 --model.text_start words --model.text_num_layers 1 --model.text_max_length 16 \
        --model.vocab_size 3000 \
        --trainable_modules token_embedding conv_in conv_out conv_norm_out time_embedding down_blocks mid_block up_blocks \
        --output_dir "$OUT/$kind/content"
    contentmotion train-motion "${COMMON[@]}" --pretrained_model_name_or_path "$OUT/$kind/content/content" \
        --autoencoder "$OUT/autoencoder/autoencoder" --max_train_steps "${MOTION_STEPS:-1000}" --train_batch_size 32 \
        --model.hidden_size 128 --model.depth 6 --model.num_heads 4 --model.content_patch_size 2 --content_noise 0.1 \
        --output_dir "$OUT/$kind/motion"
    [ -f "$OUT/$kind/pipeline/model_index.json" ] || contentmotion export --guidance_scale 2 \
        --pretrained_model_name_or_path "$OUT/$kind/content/content" --autoencoder "$OUT/autoencoder/autoencoder" \
        --motion_transformer "$OUT/$kind/motion/motion_transformer" --output_dir "$OUT/$kind/pipeline"
done

python benchmarks/few_steps.py --teachers ddpm="$OUT/v_prediction/pipeline" flow="$OUT/flow/pipeline" \
    --objectives consistency distribution_matching flow_map --max_train_steps "${STUDENT_STEPS:-400}" \
    --latent_cache "$OUT/cache-train" --eval_latent_cache "$OUT/cache-heldout" --data_dir "$CLIPS" \
    --num_videos "${NUM_VIDEOS:-64}" --num_seeds "${SEEDS:-1}" --teacher_steps --output_dir "$OUT/few_steps" "$@"
