# The chores of the checkout. `just` lists them. Only `fix` changes files.

set shell := ["bash", "-euo", "pipefail", "-c"]

# Programs of the test bed come before whatever else the machine has (tests/bed/install).
export PATH := `tests/bed/install --print-path` + ":" + env("PATH")

[private]
default:
    @just --list --unsorted

# Formatting, lints and documentation, without changing anything.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

# Everything that CI runs.
test:
    ./test

# Format, and apply what clippy can mend by itself.
fix:
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
    cargo fmt --all

# All tests of hubs under faults, once for each seed, with their figures. FLUVIAL_KILLS=N for more of each fault.
faults *SEEDS:
    tests/bed/install tests
    cargo run -p fluvial-tests --bin faults -- {{SEEDS}}

# Licences, bans, sources and, unlike CI, known vulnerabilities (needs the network).
deny:
    tests/bed/install cargo-deny
    cargo deny --workspace --locked check

# The main job end to end on real input.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# One parser with inputs that nobody meant, for longer than the tests do: a test of tests/tests/fuzz.rs.
fuzz TARGET SECONDS='600':
    FLUVIAL_FUZZ_SECONDS={{SECONDS}} cargo test --release --locked -p fluvial-tests --test fuzz -- --exact --nocapture {{TARGET}}

# Install what the benchmarks compare with.
bench-setup:
    tests/bed/install benches

# Measure one area against its peers: hub, fleet, catalog, mount, transfer, backup or bind. BENCH_SIZE=small|full
bench AREA: bench-setup
    cargo run --release -p fluvial-tests --bin bench -- {{AREA}}

# Simulate the replicated store: seeds to run again, `--minutes 30` for fresh ones, `SEED --trace` for the whole story.
simulate *ARGS:
    cargo run -p fluvial-simulation --bin simulate -- {{ARGS}}

# Switch each known bug on in the simulation and prove that it is found.
simulate-bugs *ARGS:
    cargo run -p fluvial-simulation --bin simulate -- bugs {{ARGS}}

# So many members with one hub and with three: their memory, a change to all, all hubs killed, a tenth that flaps.
fleet N="10000" *ARGS:
    cargo run --release -p fluvial-tests --bin bench -- fleet {{N}} {{ARGS}}
