# What people do with this tree; `just` lists it.

_list:
    @just --list --unsorted

# Build the tools
build:
    cargo build --release --locked

# Install what the tests need and run them all (root)
test:
    ./tests/run

# The same with many moves in a row and the whole fault matrix (hours)
test-long:
    ./tests/run --long

# Move the self-checking guest on Debian's own 6.1 and 6.12 kernels, in an emulator, with each tracker (some minutes)
test-kernels *kernels:
    ./tests/kernels {{kernels}}

# Formatting, clippy and shell scripts
lint:
    cargo fmt --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    shellcheck examples/quickstart examples/checkpoint examples/migrate-* tests/fuzz/run tests/run tests/kernels

# Licences and advisories of what we depend on (needs cargo-deny)
deny:
    cargo deny check

# Move a redis-server between two hosts made of namespaces (root)
quickstart:
    ./examples/quickstart

# Measure moves of a redis-server under load (root; `just bench --help` for choices)
bench *args:
    cargo build --release --locked -p pc-dump -p pc-restore -p pc-tests
    ${CARGO_TARGET_DIR:-target}/release/bench {{args}}

# Measure the formats: frames, checksums, zero pages, records, on one core
bench-formats:
    cargo build --release --locked -p pc-tests --bin bench-formats
    ${CARGO_TARGET_DIR:-target}/release/bench-formats

# Attack the formats: each fuzz target, or those named, for SECONDS (needs cargo-fuzz, a nightly compiler and zstd)
fuzz seconds="900" *targets:
    ./tests/fuzz/run {{seconds}} {{targets}}

# Throughput of pc-send and pc-recv on the loopback next to socat, nc and ssh (`--help` for choices)
bench-links *args:
    cargo build --release --locked -p pc-send -p pc-recv
    ./tests/bench-links --tools ${CARGO_TARGET_DIR:-target}/release {{args}}

# Put tools, manual pages and completions under PREFIX
install prefix="/usr/local": build
    #!/usr/bin/env bash
    set -euo pipefail
    built=${CARGO_TARGET_DIR:-target}/release
    for tool in pc-dump pc-restore pc-send pc-recv pc-show; do
        install -D "$built/$tool" "{{prefix}}/bin/$tool"
        install -d "{{prefix}}/share/bash-completion/completions"
        "$built/$tool" --completions bash > "{{prefix}}/share/bash-completion/completions/$tool"
    done
    for page in man/*.[157]; do
        install -D -m 644 "$page" "{{prefix}}/share/man/man${page##*.}/${page##*/}"
    done
    install -D -m 644 share/pc-tools.magic "{{prefix}}/share/misc/pc-tools.magic"
