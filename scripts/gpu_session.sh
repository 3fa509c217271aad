#!/bin/bash
# The whole study, five seeds, on a GPU that is lent for minutes at a time: check, time, train, bring the tables back.
#
#   bash scripts/gpu_session.sh 540        (seconds of this call; repeat until it prints "the study has ended")
#
# Runs go on in the background between calls and continue where they stopped when the machine was lost meanwhile, as far
# as their folders came back. Tables and settings of finished runs, the state of unfinished ones and the weights of base
# models are written to $OUT (default outputs/device) as parts of one archive: cat study.tgz.* | tar xz
#
# The machine needs no network. Put beside this repository's files before the first call, both ignored by git:
#   .whl/    wheels of hydra-core, omegaconf and antlr4-python3-runtime
#   .data/   Fashion-MNIST in torchvision's layout
#
# A rehearsal on a processor, in a clone (its outputs are no evidence):
#   DEVICE=cpu CHECKS=cpu PARTS=exp2,published SEEDS=0,1 SET="dataset.num_train=600 dataset.num_test=100 \
#     trainer.num_epochs=1 retrain.trainer.num_epochs=1 frl.num_validation=100 frl.num_steps=1" \
#     bash scripts/gpu_session.sh 300
set -u
limit=${1:-540}
device=${DEVICE:-cuda}
# What the reproduction report itself ran at its own cadence comes last: it measures 2,100 images before every step.
parts=${PARTS:-exp1,exp2,exp3,exp4,controls,grid,audit,published}
seeds=${SEEDS:-0,1,2,3,4}
out=${OUT:-outputs/device}
log=/tmp/study.log pid=/tmp/study.pid
export PYTHONUNBUFFERED=1
mkdir -p "$out" outputs

goes_on() { [ -f $pid ] && kill -0 "$(cat $pid)" 2> /dev/null; }

if [ -d .whl ]; then
    [ -d /tmp/site ] || python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl || exit 1
    export PYTHONPATH=/tmp/site
fi
common="device=$device"
[ -d .data ] && common="$common dataset.root=.data dataset.download=false"

if ! goes_on; then
    echo "== check: the same short retraining on each device; the tables should agree within a few points"
    for check in ${CHECKS:-cpu cuda}; do
        # shellcheck disable=SC2086
        python3 train.py experiment=retrain_short dataset.num_train=4000 frl.num_validation=500 trainer.num_epochs=1 \
            backend=torch $common device="$check" output_dir=outputs/check-"$check" force=true || exit 1
    done
    if [ "$device" = cuda ]; then
        echo "== tests that need a GPU"
        PYTHONPATH=src:${PYTHONPATH:-} python3 -m pytest -q -m gpu tests/test_graphs.py > "$out/gpu_tests.log" 2>&1
        tail -n 20 "$out/gpu_tests.log"
        echo "== time: fused runs against one"
        python3 benchmarks/benchmark.py parts=side_by_side device=cuda runs=1,4,16,48,80 out="$out/side_by_side" || exit 1
    fi
    setsid nohup python3 scripts/study.py launcher=fused parts="$parts" seeds="$seeds" set="$common ${SET:-}" > $log 2>&1 &
    echo $! > $pid
    sleep 1
fi

while goes_on && [ $SECONDS -lt $((limit - 40)) ]; do sleep 2; done # packing takes the rest
goes_on && echo "== the study goes on" || echo "== the study has ended"
{
    find outputs -not -path '*/check-*' \( -name '*.csv' -o -name run.json -o -name done.json -o -name state.pt \)
    find outputs/bases -name model.safetensors 2> /dev/null
} | tar czf - -T - | split -b 15m - "$out/study.tgz."
grep -E '^\[|jobs failed|^failed|^error' $log | tail -n 40
find outputs -name done.json | cut -d/ -f2 | sort | uniq -c
folders=$(ls -d outputs/exp2 outputs/exp3 outputs/exp4 outputs/controls outputs/published 2> /dev/null | paste -sd,)
[ -z "$folders" ] || python3 scripts/collect.py runs="$folders" 2>&1 | tail -n 60
