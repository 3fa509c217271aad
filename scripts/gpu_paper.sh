#!/bin/bash
# The paper's table on a GPU that is lent for minutes at a time: check, time, then train as many rows as fit.
#
#   bash scripts/gpu_paper.sh 540        (seconds of this call; repeat until it prints "the table has ended")
#
# Runs go on in the background between calls, and after a lost machine continue from the last epoch that came back. Tables,
# states and weights are written to $OUT (default outputs/device) as parts of one archive: cat paper.tgz.* | tar xz, in the
# repository's root of the next machine as well, before the first call there.
#
# The machine needs no network. Put beside this repository's files before the first call, both ignored by git:
#   .whl/    wheels of hydra-core, omegaconf and antlr4-python3-runtime
#   .data/   CIFAR-10 as torchvision keeps it (cifar-10-batches-py); or with DATA=cifar10_jpeg the file cifar10-jpeg.tar.xz
#
# A rehearsal on a processor, in a clone (its outputs are no evidence):
#   DEVICE=cpu SCHEDULE=smoke ROWS=pgd,combined TIMED="width=8 batch=30 batches=2" \
#     SET="dataset.num_train=300 dataset.num_test=100 evaluation.num_steps=1" bash scripts/gpu_paper.sh 300
set -u
limit=${1:-540}
device=${DEVICE:-cuda}
schedule=${SCHEDULE:-short}
experiment=${EXPERIMENT:-paper_table}
rows=${ROWS:-pgd,combined,reweight,trades6,remargin,baseline_reweight,trades1}
seeds=${SEEDS:-0}
python=${PYTHON:-python3}
out=${OUT:-outputs/device}
work=${WORK:-/tmp/frl_paper} # what this machine alone needs to know
runs=outputs/${experiment}_$schedule
export PYTHONUNBUFFERED=1
mkdir -p "$out" "$work" outputs

goes_on() { [ -f "$work/pid" ] && kill -0 "$(cat "$work/pid")" 2> /dev/null; }

if [ -d .whl ]; then
    [ -d "$work/site" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target "$work/site" .whl/*.whl || exit 1
    export PYTHONPATH=$work/site
fi
common="device=$device output_dir=$runs"
[ "$device" = cuda ] && [ "${COMPILE:-true}" = true ] && common="$common compile=true"
[ -n "${DATA:-}" ] && common="$common dataset=$DATA"
if [ -d .data ]; then
    case ${DATA:-} in
        cifar10_jpeg) common="$common dataset.root=.data/cifar10-jpeg.tar.xz" ;;
        *) [ "$schedule" != smoke ] && common="$common dataset.root=.data dataset.download=false" ;;
    esac
fi

if ! goes_on; then
    if [ ! -f "$work/checked" ]; then
        echo "== check: one epoch of the smoke form on generated images, on the processor and on $device"
        for check in $(printf 'cpu\n%s\n' "$device" | sort -u); do
            "$python" train.py experiment=paper_table schedule=smoke row=pgd dataset=synthetic dataset.num_train=300 \
                dataset.num_test=100 trainer.num_epochs=1 device="$check" output_dir="$work/check-$check" force=true || exit 1
        done
        if [ "$device" = cuda ]; then
            echo "== tests that need a GPU"
            PYTHONPATH=src:${PYTHONPATH:-} "$python" -m pytest -q -m gpu tests > "$out/gpu_tests.log" 2>&1
            tail -n 20 "$out/gpu_tests.log"
        fi
        echo "== time: adversarial training steps, PGD-10"
        # shellcheck disable=SC2086
        "$python" benchmarks/paper_scale.py device="$device" out="$out/paper_scale.json" ${TIMED:-} || exit 1
        touch "$work/checked"
    fi
    # shellcheck disable=SC2086
    setsid nohup "$python" train.py -m experiment="$experiment" schedule="$schedule" row="$rows" seed="$seeds" \
        $common ${SET:-} > "$work/log" 2>&1 &
    echo $! > "$work/pid"
    sleep 1
fi

while goes_on && [ $SECONDS -lt $((limit - 40)) ]; do sleep 2; done # packing takes the rest
if goes_on; then echo "== the table goes on"; else echo "== the table has ended"; fi
rm -f "$out"/paper.tgz.*
find "$runs" \( -name '*.csv' -o -name '*.json' -o -name state.pt -o -name '*.safetensors' \) -print0 |
    tar czf - --null -T - | split -b 15m - "$out/paper.tgz."
grep -E '^epoch|jobs failed|^failed|^error' "$work/log" | tail -n 20
find "$runs" -name done.json | wc -l | sed 's/$/ runs finished/'
"$python" scripts/collect.py runs="$runs" errors=natural,boundary,robust checkpoint=best 2>&1 | tail -n 40
