#!/usr/bin/env bash
# What a change must pass. `./ci.sh` runs every step, `./ci.sh STEP…` those named; `./ci.sh list` names them.
# A number after a step is that step's: `./ci.sh fuzz 600` gives each target 600 seconds (30 by default; 10 in a run of every step),
# `./ci.sh leaks 10000` makes as many rounds (200 by default).
# The last line is `N passed, N failed, N skipped`: every test counts, and every step that is no test run.
# As root, or with CI set, a test that skips itself for want of a right or a program has failed.
set -uo pipefail
cd "$(dirname "$0")" || exit 1

STEPS="packages fmt lint unsafe tree deny doc table cross test matrix rows flood leaks loom fuzz examples clients demo"
# Those that take a number, and what `./ci.sh` alone runs: every step, some for a shorter time.
NUMBERED="fuzz leaks"
EVERY=${STEPS/ fuzz / fuzz 10 }
PASSED=0 FAILED=0 SKIPPED=0
TARGET=${CARGO_TARGET_DIR:-target}
LOG=$(mktemp -d) || exit 1
trap 'rm -rf "$LOG"' EXIT
if [ "$(id -u)" = 0 ] || [ -n "${CI:-}" ]; then export FDLINK_REQUIRE=1; fi
export INSTA_UPDATE=no CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

say() { printf '\n== %s\n' "$*"; }
pass() { PASSED=$((PASSED + 1)); }
fail() { FAILED=$((FAILED + 1)); printf 'FAILED: %s\n' "$*"; }
# Something that this machine cannot do: said, and a failure where it is required.
skip() {
  printf 'SKIPPED: %s\n' "$*"
  if [ -n "${FDLINK_REQUIRE:-}" ]; then FAILED=$((FAILED + 1)); else SKIPPED=$((SKIPPED + 1)); fi
}
check() { local name=$1; shift; if "$@"; then pass; else fail "$name"; fi; }

# The programs that tests drive or are built with, and the Debian packages they come in.
step_packages() {
  local missing=() pair
  for pair in c++:g++ curl:curl iperf3:iperf3 dig:bind9-dnsutils ip:iproute2 ping:iputils-ping unshare:util-linux python3:python3; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} = 0 ] && { pass; return; }
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$LOG/apt" 2>&1 && { pass; return; }
    tail -n 5 "$LOG/apt"
  fi
  skip "not installed: ${missing[*]}"
}

step_fmt() {
  check fmt cargo fmt --all --check
  check "fmt of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
}

step_lint() {
  check "clippy" cargo clippy --workspace --all-targets --quiet -- -D warnings
  check "clippy of the library without features" cargo clippy -p fdlink --quiet -- -D warnings
  RUSTFLAGS="--cfg fuzzing" check "clippy of the fuzz targets" \
    cargo clippy --manifest-path fuzz/Cargo.toml --all-targets --quiet -- -D warnings
}

# `unsafe` only under sys/, where every file says why and every block its reason.
step_unsafe() {
  local outside undocumented
  outside=$(grep -rnE '\bunsafe[[:space:]]+(\{|fn\b|impl\b|extern\b|trait\b)|\bunsafe[[:space:]]*\{' crates --include='*.rs' |
    grep -vE '^crates/[^/]+/src/sys(/|\.rs:)')
  [ -z "$outside" ] && pass || { printf '%s\n' "$outside"; fail "unsafe code outside of sys/"; }
  undocumented=$(grep -rlE '\bunsafe[[:space:]]*(\{|fn|impl|extern)' crates/*/src/sys* --include='*.rs' | xargs -r grep -L '^// UNSAFETY: ')
  [ -z "$undocumented" ] && pass || { printf '%s\n' "$undocumented"; fail "files under sys/ without an UNSAFETY line"; }
  # Each block's SAFETY comment: clippy's undocumented_unsafe_blocks is an error in the workspace's lints.
  check "undocumented_unsafe_blocks is denied" grep -q '^undocumented_unsafe_blocks = "deny"' Cargo.toml
}

# The library's weight for those who only want the library.
step_tree() {
  local count
  count=$(cargo tree -p fdlink -e normal,build --no-default-features --prefix none | sed 's/ (\*)//' | sort -u | wc -l)
  echo "fdlink without features: $count crates"
  check "more than 20 crates in cargo tree -p fdlink" test "$count" -le 20
}

step_deny() {
  if ! cargo deny --version >/dev/null 2>&1; then
    echo "installing cargo-deny (some minutes)"
    cargo install --locked --quiet cargo-deny >"$LOG/deny" 2>&1 || { tail -n 3 "$LOG/deny"; skip "cargo-deny could not be installed"; return; }
  fi
  cargo fetch --quiet --locked
  # Offline: the advisory database is not among the checks, and everything else is here now.
  check "cargo deny" cargo deny --offline check bans licenses sources
}

step_doc() { RUSTDOCFLAGS="-D warnings" check doc cargo doc --workspace --no-deps --document-private-items --quiet; }

# "Coming from gVisor's fdbased": every row of the reference is there, and names tests that there are.
step_table() {
  local row names name missing=0
  grep -rhA 2 -E '^[[:space:]]*#\[(tokio::)?test' crates --include='*.rs' | sed -nE 's/.*fn ([a-z0-9_]+)\(.*/\1/p' | sort -u >"$LOG/tests"
  for row in S{1..16}; do
    names=$(grep -E "^//! \| $row \|" crates/fdlink/src/lib.rs | grep -oE 'test: [a-z0-9_]+' | sed 's/test: //')
    [ -n "$names" ] || { echo "$row names no test"; missing=1; }
    for name in $names; do
      grep -qx "$name" "$LOG/tests" || { echo "$row names $name, which is no test"; missing=1; }
    done
    echo "$row" $names
  done
  check "the table of rows" test $missing = 0
}

step_cross() {
  local target=aarch64-unknown-linux-gnu
  if rustc --print target-libdir --target $target 2>/dev/null | xargs -r test -d; then
    check "$target" cargo check --workspace --target $target --quiet
  else
    # Not a test that needs a right: a toolchain that this machine does not have.
    echo "the $target toolchain is not installed: not checked"
  fi
}

# Adds up what test binaries say of themselves.
count_tests() {
  local passed failed ignored skipped
  read -r passed failed ignored < <(sed -nE 's/^test result: [a-zA-Z]+\. ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored.*/\1 \2 \3/p' "$1" |
    awk '{p += $1; f += $2; i += $3} END {print p + 0, f + 0, i + 0}')
  skipped=$(grep -c 'SKIPPED' "$1")
  PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed)) SKIPPED=$((SKIPPED + ignored))
  # A test that skipped itself has returned, and so was counted as passed.
  [ "$skipped" = 0 ] || { grep 'SKIPPED' "$1" | sort -u; PASSED=$((PASSED - skipped)); SKIPPED=$((SKIPPED + skipped)); }
  [ "$passed" -gt 0 ] || fail "no test ran"
}

step_test() {
  cargo test --workspace --no-fail-fast -- --show-output >"$LOG/test" 2>&1
  local status=$?
  grep -E '^test result|^     Running|FAILED|panicked at|^error' "$LOG/test"
  count_tests "$LOG/test"
  # The program where a user without privilege can read it, for the tests that are one.
  rm -f "${TMPDIR:-/tmp}/fdlink-under-test-$(id -u)"
  if [ $status != 0 ]; then
    sed -n '/^failures:/,/^test result/p' "$LOG/test" | head -n 200
    grep -qE '^test result: FAILED' "$LOG/test" || { tail -n 30 "$LOG/test"; fail "cargo test"; }
  fi
}

# A test binary of crate fdlink that is a step of its own, since it prints what it found; with `--quiet` as the second word only
# how it ended. As root, then once more as a user without privilege, who has no device node.
tables() {
  local name=$1 quiet=${2:-} binary place log="$LOG/$1" arguments=--nocapture
  [ -z "$quiet" ] || arguments=--test-threads=2
  binary=$(cargo test -p fdlink --test "$name" --no-run --message-format=json 2>"$log" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
  [ -n "$binary" ] || { tail -n 30 "$log"; fail "$name does not build"; return; }
  (cd crates/fdlink && "$binary" $arguments) >"$log" 2>&1 || cat "$log" >>"$LOG/failed"
  [ -s "$LOG/failed" ] && tail -n 60 "$LOG/failed" && : >"$LOG/failed"
  grep -E "${quiet:+^test }" "$log" | grep -vE '^(running [0-9]+ test.*|)$'
  count_tests "$log"
  [ "$(id -u)" = 0 ] || return
  echo "-- as a user without privilege"
  place=$(mktemp -d) && chmod 755 "$place" && cp "$binary" "$place/$name"
  su nobody -s /bin/sh -c "cd '$place' && env -u FDLINK_REQUIRE FDLINK_LEAK_ROUNDS=${LEAK_ROUNDS_NOBODY:-50} './$name' $arguments" >"$log" 2>&1 ||
    tail -n 60 "$log"
  grep -E "${quiet:+^test |SKIPPED}" "$log" | grep -vE '^(running [0-9]+ test.*|)$'
  # What was skipped here for want of a right has run as root.
  sed -i '/SKIPPED/d' "$log"
  count_tests "$log"
  rm -rf "$place"
}

# Every kind of descriptor × every mode: what holds of all, what there is, and how an endpoint lives.
step_matrix() { tables conformance; tables matrix; tables life --quiet; }

# What a frame with work left to do is on the wire, for every combination.
step_rows() { tables rows; }

# What is overrun on purpose adds up.
step_flood() { tables flood; }

# What endpoints leave behind: nothing.
step_leaks() { export FDLINK_LEAK_ROUNDS=${1:-200}; tables leaks; unset FDLINK_LEAK_ROUNDS; }

# The ring's cursor under every interleaving of kernel and reader.
step_loom() {
  RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$TARGET/loom" cargo test -p fdlink --lib loom >"$LOG/loom" 2>&1 || tail -n 40 "$LOG/loom"
  grep '^test ' "$LOG/loom"
  count_tests "$LOG/loom"
}

# The examples, as a reader runs them: a line each.
step_examples() {
  cargo build -p fdlink --examples --quiet || { fail "the examples do not build"; return; }
  local place
  place=$(mktemp -d) && chmod 755 "$place"
  cp "$TARGET"/debug/examples/{dump,echo,forward} tests/examples.sh "$place/"
  "$place/examples.sh" "$place" >"$LOG/examples" 2>&1
  [ "$(id -u)" != 0 ] || su nobody -s /bin/sh -c "'$place/examples.sh' '$place'" >>"$LOG/examples" 2>&1
  rm -rf "$place"
  cat "$LOG/examples"
  PASSED=$((PASSED + $(grep -c '^ok ' "$LOG/examples"))) FAILED=$((FAILED + $(grep -c '^FAILED ' "$LOG/examples")))
  grep -q '^ok ' "$LOG/examples" || fail "no example ran"
}

# Every fuzz target for so many seconds, from its seeds and from what runs before it have found (fuzz/corpus).
step_fuzz() {
  local seconds=${1:-30} target log
  if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "installing cargo-fuzz (a minute)"
    cargo install --locked --quiet cargo-fuzz >"$LOG/fuzz" 2>&1 || { tail -n 3 "$LOG/fuzz"; skip "cargo-fuzz could not be installed"; return; }
  fi
  cargo fuzz build -s none >"$LOG/fuzz" 2>&1 || { tail -n 30 "$LOG/fuzz"; fail "the fuzz targets do not build"; return; }
  printf '%-10s %12s %10s %8s   (%s s each)\n' target execs execs/s coverage "$seconds"
  for target in $(cargo fuzz list); do
    log="$LOG/fuzz-$target"
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -s none -- \
      -max_total_time="$seconds" -timeout=10 -print_final_stats=1 >"$log" 2>&1
    local status=$?
    printf '%-10s %12s %10s %8s\n' "$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
      "$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")" "$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)"
    [ $status = 0 ] && pass && continue
    grep -A 4 -E 'panicked at|ERROR: |Failing input|Reproduce with' "$log" | cut -c 1-200
    fail "fuzz $target"
  done
}

release() { cargo build --release --quiet || { fail "release build"; return 1; }; }

# Real clients through `fdlink run`: a line for each case × mode × IP version.
step_clients() {
  release || return
  python3 tests/clients.py --fdlink "$TARGET/release/fdlink" 2>&1 | tee "$LOG/clients"
  local status=${PIPESTATUS[0]}
  PASSED=$((PASSED + $(grep -c '^ok ' "$LOG/clients"))) FAILED=$((FAILED + $(grep -c '^FAILED ' "$LOG/clients")))
  [ "$status" = 0 ] || grep -q '^FAILED ' "$LOG/clients" || fail "clients ended with $status"
}

# The demo, as a newcomer runs it; also without privilege where there is somebody to be.
step_demo() {
  release || return
  local place
  place=$(mktemp -d) && chmod 755 "$place" && cp "$TARGET/release/fdlink" "$place/"
  check demo sh -c "cd '$place' && ./fdlink demo && test -s fdlink-demo.svg"
  if [ "$(id -u)" = 0 ]; then
    rm -f "$place/fdlink-demo.svg" && chmod 777 "$place"
    check "demo as nobody" su nobody -s /bin/sh -c "cd '$place' && ./fdlink demo && test -s fdlink-demo.svg"
  fi
  rm -rf "$place"
}

if [ "${1:-}" = list ]; then echo "$STEPS"; exit; fi
# shellcheck disable=SC2086
[ $# != 0 ] || set -- $EVERY
# Every word is looked at before anything runs.
plan=() step=
for word; do
  if [[ " $STEPS " = *" $word "* ]]; then
    step=$word && plan+=("$word")
  elif ! [[ $word =~ ^[0-9]+$ ]]; then
    echo "no step '$word'; the steps are: $STEPS" >&2 && exit 2
  elif [[ -n $step && " $NUMBERED " = *" $step "* ]]; then
    plan[-1]+=" $word" && step=
  else
    echo "$word: a number stands behind one of: $NUMBERED" >&2 && exit 2
  fi
done
for step in "${plan[@]}"; do
  # The step, and its number if it has one.
  # shellcheck disable=SC2086
  say "$step" && step_$step
done
say done
echo "$PASSED passed, $FAILED failed, $SKIPPED skipped"
[ $FAILED = 0 ] && [ $PASSED != 0 ]
