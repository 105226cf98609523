# The two commands: `make demo` and `make test`. Each sets up the machine itself (tests/lab/setup).
CARGO ?= cargo
JOBS  ?= 2
# The daemon can be halted at a step in tests, and in no build that is used.
HALT  := --features rbd-guardian/halt

.PHONY: help setup build demo test soak bench bench-smoke packages lint clean

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 13

setup: ## install what the lab needs (Debian packages, a kernel for VMs, the newest Ceph and Incus)
	@tests/lab/setup

build: setup ## build the release binary
	$(CARGO) build --release --locked

demo: setup ## a container whose member is lost and healed: without the guardian, then with it (DEMO=--with: that alone)
	$(CARGO) build --release --locked --bin rbd-guardian --example demo
	@"$${CARGO_TARGET_DIR:-target}/release/examples/demo" $(DEMO)

test: setup ## everything: units, the ABI, real Ceph and Incus, real krbd, a sample of the newest Ceph and Incus
	GUARDIAN_TEST_THREADS=$(JOBS) tests/run

soak: ## the randomised rounds in full (hours), minutes with a released kernel client, other releases of Ceph and Incus
	@tests/lab/setup --soak
	GUARDIAN_WORLDS=20000 $(CARGO) test --locked -p rbd-guardian-core --test guardian world:: -- --nocapture
	GUARDIAN_ROUNDS=50 $(CARGO) test --locked $(HALT) --test sealed -- --nocapture --test-threads=$(JOBS)
	GUARDIAN_ROUNDS=20 $(CARGO) test --locked $(HALT) --test incus story:: -- --nocapture --test-threads=$(JOBS)
	GUARDIAN_STEPS=all $(CARGO) test --locked $(HALT) --test crash steps:: -- --nocapture --test-threads=$(JOBS)
	GUARDIAN_ROUNDS=100 $(CARGO) test --locked $(HALT) --test crash faults:: -- --nocapture
	GUARDIAN_ROUNDS=100 $(CARGO) test --locked $(HALT) --test incus faults:: -- --nocapture
	GUARDIAN_ROUNDS=30 $(CARGO) test --locked $(HALT) --test crash stopped:: -- --nocapture --test-threads=$(JOBS)
	GUARDIAN_FAULTS=110 GUARDIAN_BODY_MINUTES=60 $(CARGO) test --locked $(HALT) --test crash siege:: -- --nocapture --test-threads=1
	GUARDIAN_FAULTS=44 $(CARGO) test --locked $(HALT) --test incus besieged:: -- --nocapture
	GUARDIAN_STEPS=all $(CARGO) test --locked $(HALT) --test incus gate_steps:: -- --nocapture
	GUARDIAN_ROUNDS=10 GUARDIAN_BLIND=180 $(CARGO) test --locked $(HALT) --test incus leads:: -- --nocapture --test-threads=$(JOBS)
	GUARDIAN_SOAK=1 $(CARGO) test --locked $(HALT) --test krbd -- --nocapture --test-threads=1
	$(CARGO) test --locked $(HALT) --test second_release -- --nocapture --test-threads=$(JOBS)
	deploy/build-packages
	$(CARGO) test --locked $(HALT) --test packages -- --nocapture --test-threads=1
	GUARDIAN_WORLD=newest GUARDIAN_ROUNDS=20 GUARDIAN_STEPS=all tests/run sealed pending entries release fence hold watchers pools \
		protected guardians daemon ledger librados ipv6 errors json keys crash rbd-guardian:incus

bench: setup ## the table of speeds (target/bench.json), and what the core needs for an input
	$(CARGO) bench --locked --bench bench
	$(CARGO) bench --locked -p rbd-guardian-core --bench core

bench-smoke: setup ## each row once and small, so that none rots
	GUARDIAN_BENCH=smoke $(CARGO) bench --locked --profile dev $(HALT) --bench bench
	GUARDIAN_BENCH=smoke $(CARGO) bench --locked --profile dev -p rbd-guardian-core --bench core -- --test

packages: setup ## the .deb and .rpm with manual pages and completions, in target/packages
	deploy/build-packages

lint: ## formatting, clippy, documentation, dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --lib --bins --examples --benches --locked -- -D warnings
	$(CARGO) clippy --workspace --all-targets --locked $(HALT) -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items --locked
	tests/deny

clean: ## remove what was built
	$(CARGO) clean
