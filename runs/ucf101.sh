#!/usr/bin/env bash
# CMD on UCF-101, class-conditional: 16 frames of 64x64 pixels (CMD Tables 5-7).
#
#   DATA=~/ucf101 bash runs/ucf101.sh
#
# DATA holds UCF-101 and its lists (docs/data.md): the 9,537 train videos of split 1 are taken, as in the paper; or only
# one sub-folder of videos per class, of which all are taken. Stopped? Run it again: every stage goes on where it was.
# The sizes are the paper's and want a GPU of 80 GB; its batch sizes are kept on one GPU by gradient accumulation.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DATA:?set DATA to the folder of UCF-101 and its lists}"
OUT="${OUT:-outputs/ucf101}"
AUTOENCODER="$OUT/autoencoder/autoencoder"

contentmotion train-autoencoder --config configs/ucf101/autoencoder.yaml \
    --train_data_dir "$DATA" --output_dir "$OUT/autoencoder"

contentmotion encode --config configs/ucf101/encode.yaml \
    --train_data_dir "$DATA" --autoencoder "$AUTOENCODER" --output_dir "$OUT/cache"

contentmotion train-content --config configs/ucf101/content.yaml \
    --latent_cache "$OUT/cache" --output_dir "$OUT/content"

contentmotion train-motion --config configs/ucf101/motion.yaml \
    --latent_cache "$OUT/cache" --autoencoder "$AUTOENCODER" --output_dir "$OUT/motion"

[ -f "$OUT/pipeline/model_index.json" ] || contentmotion export --pretrained_model_name_or_path "$OUT/content/content" \
    --autoencoder "$AUTOENCODER" --motion_transformer "$OUT/motion/motion_transformer" --output_dir "$OUT/pipeline"

# CMD B.4: DDIM, 50 steps for the content frame, 100 for the motion, guidance 4.0; FVD of 2,048 videos.
SAMPLING=(--pretrained_model_name_or_path "$OUT/pipeline"
    --num_inference_steps 50 --motion_num_inference_steps 100 --guidance_scale 4.0)

# Needs the I3D network's weights: --i3d FILE, or the environment variable CONTENTMOTION_I3D.
contentmotion evaluate "${SAMPLING[@]}" --data_dir "$DATA" --num_videos 2048 --batch_size 32 \
    --output_dir "$OUT/evaluate"

contentmotion generate "${SAMPLING[@]}" --class_labels 0 1 2 3 4 5 6 7 --output_dir "$OUT/samples"
