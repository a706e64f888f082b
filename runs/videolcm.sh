#!/usr/bin/env bash
# VideoLCM: text to video in a few steps, 16 frames of 448x256; with conditions what VideoLCM calls compositional.
#
#   DATA=~/videos bash runs/videolcm.sh                                    # Stable Diffusion, inflated, then distilled
#   DATA=~/videos CONDITIONS="depth sketch mask first_frame" bash runs/videolcm.sh
#   DATA=~/videos TEACHER=damo-vilab/text-to-video-ms-1.7b bash runs/videolcm.sh      # a trained teacher: only distilled
#
# DATA holds the videos and metadata.csv (file_name, caption, split: train or validation). Stopped? Run it again: every
# stage goes on where it was. Wants GPUs of 80 GB; batch sizes are kept on one GPU by gradient accumulation.
#   DEPTH_MODEL   where CONDITIONS names depth: hub id or folder of a depth model of transformers
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DATA:?set DATA to the folder with the videos and metadata.csv}"
CONDITIONS="${CONDITIONS:-}"
OUT="${OUT:-outputs/videolcm}"
DEPTH_MODEL="${DEPTH_MODEL:-depth-anything/Depth-Anything-V2-Small-hf}"

ENCODE=(--config configs/videolcm/encode.yaml --train_data_dir "$DATA")
# A teacher's own image VAE and text encoder make its latents and text features.
[ -z "${TEACHER:-}" ] || ENCODE+=(--vae "$TEACHER" --pretrained_model_name_or_path "$TEACHER")
TRAIN=()
MAPS=()
[[ " $CONDITIONS " == *" sketch "* ]] && MAPS+=(sketch)
[[ " $CONDITIONS " == *" depth "* ]] && MAPS+=(depth) && ENCODE+=(--depth_model "$DEPTH_MODEL")
[ ${#MAPS[@]} = 0 ] || ENCODE+=(--conditions "${MAPS[@]}")
# shellcheck disable=SC2206  # words, on purpose
[ -z "$CONDITIONS" ] || TRAIN=(--conditions $CONDITIONS)

contentmotion encode "${ENCODE[@]}" --output_dir "$OUT/cache"
contentmotion encode "${ENCODE[@]}" --split validation --output_dir "$OUT/cache-validation"

if [ -z "${TEACHER:-}" ]; then
    contentmotion train-video --config configs/videolcm/video.yaml "${TRAIN[@]}" \
        --latent_cache "$OUT/cache" --output_dir "$OUT/teacher"
    TEACHER="$OUT/teacher/video"
fi

contentmotion distill --config configs/videolcm/distill.yaml --pretrained_model_name_or_path "$TEACHER" \
    --latent_cache "$OUT/cache" --eval_latent_cache "$OUT/cache-validation" --output_dir "$OUT/student"

# Needs the I3D network's weights: --i3d FILE, or the environment variable CONTENTMOTION_I3D.
contentmotion evaluate --pretrained_model_name_or_path "$OUT/student/video" --num_inference_steps 4 \
    --data_dir "$DATA" --split validation --num_videos 2048 --output_dir "$OUT/evaluate"

contentmotion generate "A Teddy Bear skating in Times Square" "Waves rolling onto a beach at sunset" \
    --pretrained_model_name_or_path "$OUT/student/video" --num_inference_steps 4 --output_dir "$OUT/samples"
