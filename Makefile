# What people type. `make` alone says what there is; CI (.ci/run) runs the same targets.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
# The dependencies of Cargo.lock, and no others.
LOCKED ?= --locked

.PHONY: help build demo test test-all lint fmt check-client deny doc chaos chaos-faults chaos-kills bench bench-micro fleet network renewals sabotage run-server run-client clean

help: ## says what there is
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## builds the three programs (debug)
	$(CARGO) build $(LOCKED) --all-features

demo: ## starts a server and a client here, pulls 100 MB, compares both ends
	@scripts/demo

test: ## the fast tests; says what it left out, and why
	@scripts/test fast

test-all: ## every test, slow and foreign ones too (needs grpcurl, Python with grpcio)
	@scripts/test all

chaos-kills: ## kills and fails the programs at every single call (needs strace; KILL=POINT: one again)
	KILL=$(or $(KILL),all) $(CARGO) test $(LOCKED) --all-features --test kill_points -- --include-ignored --nocapture

lint: ## formatting, and clippy on each set of features
	$(CARGO) fmt --check
	$(CARGO) clippy $(LOCKED) --all-features --all-targets -- -D warnings
	$(CARGO) clippy $(LOCKED) --no-default-features --features client -- -D warnings
	$(CARGO) clippy $(LOCKED) --no-default-features --features operator -- -D warnings
	$(CARGO) clippy $(LOCKED) --no-default-features --features server -- -D warnings

fmt: ## formats the code
	$(CARGO) fmt

check-client: ## proves that the client links no database, and is small
	@scripts/check-client

deny: ## checks licences, sources and unwanted crates (needs cargo-deny)
	$(CARGO) deny --all-features check bans licenses sources

doc: ## builds the documentation; a broken link is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(LOCKED) --all-features --no-deps --document-private-items

chaos: chaos-kills chaos-faults ## everything that breaks fts on purpose, for a while (SECONDS=600 SEED=7)

chaos-faults: ## random faults, run after run (SECONDS=600), or one seed of them (SEED=7)
	FTS_CHAOS_SECONDS=$(or $(SECONDS),300) FTS_CHAOS_SEED=$(SEED) \
		$(CARGO) test $(LOCKED) --all-features --test chaos -- --include-ignored random_faults

bench: ## fts beside cp, rsync, nginx and scp, with goals (release build; ROWS=big,disk ROUNDS=10)
	@scripts/bench/run

bench-micro: ## the parts of the data path and the verbs of the store, each by itself
	$(CARGO) bench $(LOCKED) --all-features --bench micro

fleet: ## N idle clients on one server: what they cost (release build; N=20000)
	N=$(or $(N),20000) $(CARGO) bench $(LOCKED) --all-features --bench fleet

renewals: ## certificates of two minutes and a change of the authority under 200 clients (FTS_RENEWALS=SECONDS:CLIENTS)
	FTS_RENEWALS=$(or $(FTS_RENEWALS),120:200) $(CARGO) test $(LOCKED) --all-features --test renewed -- --include-ignored

network: ## what networks do, behind a NAT in network namespaces (root; NAMES="router-reboot-idle …")
	$(CARGO) build $(LOCKED) --all-features
	tests/network/scenarios.py $(NAMES)

sabotage: ## takes one defence after the other away: a named test must fail (long; NAMES="no-fencing …")
	scripts/sabotage $(NAMES)

run-server: ## starts a server on localhost:3000
	$(CARGO) run $(LOCKED) --bin fts-server

run-client: ## starts a client for it, with its demo file
	$(CARGO) run $(LOCKED) --bin fts-client

clean: ## removes everything that was built
	$(CARGO) clean
