#!/usr/bin/env bash
# Trains all weights that want a GPU, in four chains side by side: small models do not fill a GPU.
# CIFAR-10 with 32 tokens: tokenizer, prior; with 64: tokenizer. ImageNet at 64x64: VAE, classifiers,
# tokenizer, prior. Scenes at 32x32: tokenizer, text prior. Each is evaluated on its test split.
#
#     make flagship-gpu CIFAR=DIR/cifar10-{split}.tar.gz IMAGENET=DIR/tiny-imagenet-{split}.tar.gz
#
# Every command resumes what it began, and what is trained is not trained again: after a stop, run it
# again. STEPS=20 is a rehearsal of a few minutes on a CPU, with DEVICE=cpu.
set -u
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
CIFAR=${CIFAR:-cifar10}
IMAGENET=${IMAGENET:-}
RUNS=${RUNS:-runs/flagship}
STEPS=${STEPS:-}   # a rehearsal: steps of each training
CHAINS=${CHAINS:-cifar10 cifar10_64 imagenet64 shapes32}
FEW=()  # a rehearsal evaluates few images; otherwise all
[ -n "$STEPS" ] && FEW=(--num-images "$STEPS")
SCENES=${SCENES:-shapes-100k}
PREFIXES=$((${STEPS:-24} < 24 ? STEPS : 24))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
mkdir -p "$RUNS"

run() {  # NAME ARGUMENTS...: minflextok with a log of its own
    local name=$1
    shift
    if "$PYTHON" -m minflextok "$@" >> "$RUNS/$name.log" 2>&1; then
        echo "$SECONDS s: $name"
    else
        echo "failed: $name, see $RUNS/$name.log"
        tail -n 5 "$RUNS/$name.log"
        return 1
    fi
}

train() {  # NAME STAGE MINUTES ARGUMENTS...: into RUNS/NAME, unless it is there
    local name=$1 stage=$2 minutes=$3
    shift 3
    local length=(--minutes "$minutes")
    [ -n "$STEPS" ] && length=(--steps "$STEPS" --minutes 0 --eval-every "$STEPS" --batch-size 8)
    [ "$DEVICE-$stage" = cpu-tokenizer ] && length+=(--no-compile)  # it takes minutes
    [ -e "$RUNS/$name/trained" ] && return
    run "$name" train "$stage" "$@" "${length[@]}" --device "$DEVICE" --out "$RUNS/$name" --quiet \
        && { [ "$stage" = vae ] || export_weights "$name"; } && touch "$RUNS/$name/trained"
}

export_weights() {  # NAME: as bfloat16, as they are shipped, to RUNS/weights/NAME
    "$PYTHON" - "$RUNS" "$1" <<'EXPORT'
import sys
from pathlib import Path

import torch

from minflextok import FlexTok, Prior
from minflextok.evaluation.classifier import Classifier

runs, name = Path(sys.argv[1]), sys.argv[2]
kind = Prior if name.startswith("prior") else Classifier if name.startswith(("judge", "teacher")) else FlexTok
kind.from_pretrained(runs / name).save_pretrained(runs / "weights" / name, torch.bfloat16)
EXPORT
}

evaluate() {  # NAME GUIDANCE ARGUMENTS...: a tokenizer, as it is shipped
    local name=$1 guidance=$2
    shift 2
    run "$name-evaluate-$guidance" evaluate --weights "$RUNS/weights/$name" --steps 12 --guidance "$guidance" --bf16 \
        --batch-size 500 "${FEW[@]}" --device "$DEVICE" --out "$RUNS/$name/results-$guidance.json" "$@"
}

photographs() {  # NAME: a tokenizer of CIFAR-10; its evaluations go on in the background
    train "$1" tokenizer "${CIFAR_MINUTES:-6.2}" --preset "$1" --data "$CIFAR" --repa teacher-cifar10 || return
    for guidance in 1 1.25 1.5 2; do evaluate "$1" $guidance --data "$CIFAR" & done
}

cifar10_64() {
    photographs cifar10-64
    wait
}

cifar10() {
    photographs cifar10 || return
    train prior-cifar10 prior 0.8 --preset cifar10 --tokenizer "$RUNS/weights/cifar10" --data "$CIFAR"
    wait
}

imagenet64() {
    train judge-imagenet64 classifier 0.9 --preset classifier-imagenet64 --data "$IMAGENET" &
    train teacher-imagenet64 classifier 0.9 --preset teacher-imagenet64 --seed 1 --data "$IMAGENET" &
    train vae-imagenet64 vae 1.1 --preset f4-small --batch-size 32 --lr 2e-3 --data "$IMAGENET" --val-images 256
    wait
    train imagenet64-large tokenizer 3.2 --preset imagenet64-large --data "$IMAGENET" --vae "$RUNS/vae-imagenet64" \
        --repa "$RUNS/teacher-imagenet64" || return
    for guidance in 1 2; do
        evaluate imagenet64-large $guidance --data "$IMAGENET" --classifier "$RUNS/judge-imagenet64" &
    done
    train prior-imagenet64-large prior 0.8 --preset imagenet64-large --tokenizer "$RUNS/weights/imagenet64-large" --data "$IMAGENET" \
        && run prior-imagenet64-large-evaluate evaluate-prior --prior "$RUNS/weights/prior-imagenet64-large" --tokenizer "$RUNS/weights/imagenet64-large" \
        --data "$IMAGENET" --classifier "$RUNS/judge-imagenet64" --num-samples "${STEPS:-2500}" --prefix-images "$PREFIXES" --steps 12 \
        --guidance 1 2 --decoder-guidance 2 --bf16 --batch-size 500 --device "$DEVICE" --out "$RUNS/prior-imagenet64-large/test"
    wait
}

shapes32() {
    train shapes32 tokenizer 2.2 --preset shapes32 --data "$SCENES" || return
    train prior-shapes32 prior 2 --preset shapes32 --data "$SCENES" --tokenizer "$RUNS/weights/shapes32" || return
    run prior-shapes32-evaluate evaluate-prior --prior "$RUNS/weights/prior-shapes32" --tokenizer "$RUNS/weights/shapes32" \
        --num-samples "${STEPS:-1000}" --prefix-images "$PREFIXES" --guidance 2 --temperature 0.6 --steps 12 --decoder-guidance 2 --bf16 \
        --batch-size 500 --device "$DEVICE" --out "$RUNS/prior-shapes32/test"
}

for chain in $CHAINS; do
    [ "$chain" = imagenet64 ] && [ -z "$IMAGENET" ] || $chain &
done
wait
