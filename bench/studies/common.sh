# What the studies share; sourced, never run. A study queues its runs with `run`, carries them out with
# `finish`, and prints what is in their folders with `table`. A run that has a summary is not repeated,
# so that an interrupted study goes on where it stopped.
#
#   JOBS     runs at a time, one thread each (default: the number of cores)
#   DATA     the text (default data/tinyshakespeare.txt, as scripts/get_data fetches it)
#   RUNS     where run folders go (default runs/studies)
#   DEVICE   cpu or cuda (default cpu)
#   OPTIONS  more options of every run, say --balance-rate 0.02; give them another RUNS, too
#   PROTEUS  the program (default build/cpu/train/proteus)
#   BENCH    where the programs of the studies are (default build/cpu/bench)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
JOBS=${JOBS:-$(nproc)}
DATA=${DATA:-data/tinyshakespeare.txt}
RUNS=${RUNS:-runs/studies}
PROTEUS=${PROTEUS:-build/cpu/train/proteus}
BENCH=${BENCH:-build/cpu/bench}
DEVICE=${DEVICE:-cpu}
OPTIONS=${OPTIONS:-}
export DEVICE OPTIONS PROTEUS OMP_WAIT_POLICY=passive
started=$(date +%s)
queue=()
failed=0

need_data() {
  [ -f "$DATA" ] && return
  echo "$0: $DATA is not there; scripts/get_data fetches it, or name a text with DATA=FILE" >&2
  exit 1
}

# run FOLDER COMMAND OPTIONS...: one run of the program, into $RUNS/FOLDER.
run() {
  local folder=$RUNS/$1
  shift
  [ -f "$folder/done" ] && return
  queue+=("$folder $(printf '%q ' "$@")")
}

# carry_out "FOLDER ARGUMENTS": for finish.
carry_out() {
  local folder=${1%% *}
  mkdir -p "$folder"
  if eval "$PROTEUS ${1#* } $OPTIONS --device $DEVICE --threads 1 --quiet --out $folder" >"$folder.log" 2>&1; then
    touch "$folder/done"
  else
    echo "$folder failed: $(tail -n 1 "$folder.log")" >&2
    return 1
  fi
}
export -f carry_out

# Runs what is queued, JOBS at a time, in order. What fails is missing in the table, and in the end the
# study fails.
finish() {
  if [ ${#queue[@]} -gt 0 ]; then
    printf '%s\0' "${queue[@]}" | xargs -0 -P "$JOBS" -I{} bash -c 'carry_out "$1"' _ {} || failed=1
  fi
  queue=()
}

# table LABEL=FOLDER...: see bench/studies/table.cpp; folders below $RUNS that are not done are left out.
table() {
  local rows=()
  for row in "$@"; do
    [ -f "$RUNS/${row#*=}/done" ] && rows+=("${row%%=*}=$RUNS/${row#*=}")
  done
  if [ ${#rows[@]} -gt 0 ]; then "$BENCH/study_table" "${rows[@]}"; else echo "No run is done."; fi
}

# The last line of a study.
elapsed() {
  echo "$(($(date +%s) - started)) s with $JOBS runs at a time; runs that were there already are not counted."
  exit $failed
}
