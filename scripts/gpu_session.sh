#!/bin/bash
# The whole study on a GPU that is lent for minutes at a time: check, then train, then bring the tables back.
#
#   bash scripts/gpu_session.sh 540        (seconds of this call; repeat until it prints "the study has ended")
#
# Runs go on in the background between calls and continue where they stopped when the machine was lost meanwhile, as far
# as their folders came back. Tables, settings and weights of finished runs are written to $OUT (default outputs/device)
# as parts of one archive: cat study.tgz.* | tar xz
#
# The machine needs no network. Put beside this repository's files before the first call, both ignored by git:
#   .whl/    wheels of hydra-core, omegaconf, antlr4-python3-runtime and hydra-joblib-launcher
#   .data/   Fashion-MNIST in torchvision's layout
set -u
seconds=${1:-540}
out=${OUT:-outputs/device}
log=/tmp/study.log
export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1
mkdir -p "$out" outputs

if [ ! -d /tmp/site ]; then
    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl || exit 1
fi
common="backend=torch dataset.root=.data dataset.download=false"

if ! pgrep -f scripts/study.py > /dev/null; then
    echo "== check: the same short retraining on the processor and on the GPU; the two tables should agree within a few points"
    # shellcheck disable=SC2086
    for device in cpu cuda; do
        python3 train.py frl=reweight alpha.nat=5 recipe=report experiment=retrain_short dataset.num_train=4000 \
            $common device=$device output_dir=outputs/check-$device force=true || exit 1
    done
    echo "== one adversarial epoch, seconds"
    # shellcheck disable=SC2086
    time python3 train.py device=cuda $common trainer.num_epochs=1 output_dir=outputs/check-epoch force=true || exit 1
    setsid nohup python3 scripts/study.py jobs="${JOBS:-12}" set="device=cuda $common" > $log 2>&1 &
    sleep 1
fi

end=$((SECONDS + seconds))
while pgrep -f scripts/study.py > /dev/null && [ $SECONDS -lt $end ]; do sleep 2; done
pgrep -f scripts/study.py > /dev/null && echo "== the study goes on" || echo "== the study has ended"
find outputs -name '*.csv' -o -name run.json -o -name done.json -o -name split.safetensors -o -name model.safetensors \
    | grep -v /check- | tar czf - -T - | split -b 15m - "$out/study.tgz."
grep -E '^\[|failed|error' $log | tail -n 40
find outputs -name done.json | cut -d/ -f2 | sort | uniq -c
python3 scripts/collect.py runs=outputs/exp2,outputs/exp3,outputs/exp4,outputs/controls 2>&1 | tail -n 60
