#!/usr/bin/env bash
# runs/webvid.sh on a Slurm cluster: one job per stage; the content and the motion model train at the same time.
#
#   DATA=/data/webvid bash runs/webvid_slurm.sh --partition gpu --account me     # options of sbatch for every job
#
# Nodes as in the paper: 1 x 8 GPUs for the autoencoder, 8 x 8 for the content model, 4 x 8 for the motion model;
# change them with NODES_AUTOENCODER and so on. Two minutes before its time limit (HOURS) a job passes SIGTERM on to its
# run, which saves a checkpoint, and is queued again; so it is when its nodes are taken away. A run that failed is not.
set -euo pipefail
cd "$(dirname "$0")/.."

: "${DATA:?set DATA to the folder with the videos and metadata.csv, which all nodes see}"
export DATA RECIPE="${RECIPE:-webvid-sd21}"
export OUT="${OUT:-outputs/$RECIPE}"
PER_NODE="${PER_NODE:-8}" # GPUs
HOURS="${HOURS:-24}"
mkdir -p "$OUT"

# submit STAGE NODES AFTER [OPTION...]: prints the job's number; AFTER are the numbers of jobs that must have succeeded.
submit() {
    local stage="$1" nodes="$2" after="$3" gpus=$(($2 * PER_NODE))
    shift 3
    sbatch --parsable --job-name "contentmotion-$stage" --nodes "$nodes" --ntasks-per-node 1 \
        --gres "gpu:$PER_NODE" --time "$HOURS:00:00" --signal B:TERM@120 --requeue --open-mode append \
        --output "$OUT/slurm-$stage.log" ${after:+--dependency "afterok:$after"} "$@" <<JOB
#!/usr/bin/env bash
head=\$(scontrol show hostnames "\$SLURM_JOB_NODELIST" | head -n 1)
export STAGES=$stage GPUS=$gpus
export LAUNCH="srun torchrun --nnodes $nodes --nproc_per_node $PER_NODE --rdzv_id \$SLURM_JOB_ID --rdzv_backend c10d --rdzv_endpoint \$head:29500"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110 # torchrun passes SIGTERM on, and would kill after 30 seconds
told=0 said=\$(wc -l < "$OUT/slurm-$stage.log")
trap 'told=1; trap "" TERM; scancel --signal TERM "\$SLURM_JOB_ID"' TERM # scancel: all steps, not this shell
bash runs/webvid.sh &
run=\$! status=0
wait "\$run" || status=\$?
if [ "\$told" -eq 1 ]; then # the signal ended the waiting, not the run
    status=0
    wait "\$run" || status=\$?
fi
# Stopped before its end, by this job's time or by what the run says: torchrun's exit status is that of a failure.
if [ "\$status" -ne 0 ] && { [ "\$told" -eq 1 ] ||
    tail -n "+\$((said + 1))" "$OUT/slurm-$stage.log" | grep -q "the same command goes on from there"; }; then
    scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
JOB
}

autoencoder=$(submit autoencoder "${NODES_AUTOENCODER:-1}" "" "$@")
encode=$(submit encode "${NODES_ENCODE:-4}" "$autoencoder" "$@")
content=$(submit content "${NODES_CONTENT:-8}" "$encode" "$@")
motion=$(submit motion "${NODES_MOTION:-4}" "$encode" "$@")
finish=$(submit finish "${NODES_FINISH:-1}" "$content:$motion" "$@")
echo "autoencoder $autoencoder, encode $encode, content $content, motion $motion, finish $finish"
