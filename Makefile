# What people run: `make demo` and `make test`. Both install what is missing and can be repeated.
# Build products go to CARGO_TARGET_DIR, caches to /var/cache/kopek; `make clean-caches` removes the latter.

SHELL := /bin/bash
export CARGO_TARGET_DIR ?= /var/cache/kopek/target
STORY ?= full
FAULTS ?= 200
MINUTES ?= 60
SEED ?=
FUZZ_SECONDS ?= 60

.PHONY: help demo test bench chaos-db chaos-editors fuzz setup lint deny units differential differential-short e2e clean-caches

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: setup ## three virtual servers host a real WordPress: load, scale-out, a dead server, recovery (STORY=short: and down again)
	cargo build --release -p kopek -p kopek-tests --bin kopek --bin story
	$(CARGO_TARGET_DIR)/release/story --story $(STORY)

test: setup lint units differential-short e2e ## all tests

setup: ## install the Debian packages that Kopek and its tests use, without starting their daemons
	@tests/setup.sh

lint: ## formatting, clippy, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(MAKE) deny

deny: ## licences, sources, duplicates and (where the advisory database can be reached) advisories
	@tests/deny.sh

units: ## tests of the crates, against real parts
	cargo build -p kopek
	cargo nextest run --workspace --exclude kopek-tests

fuzz: ## all that reads what clients and members send, with new inputs; what was found before is in `units`
	tests/fuzz.sh $(FUZZ_SECONDS)

e2e: ## end-to-end tests on a virtual rack
	cargo build -p kopek
	cargo nextest run -p kopek-tests

# The proxy alone before one server: see tests/differential/fronts.py for how it is called.
ALONE = $(CARGO_TARGET_DIR)/debug/examples/alone --user root --password ''

# As in production: marked writes, waiting connections, repeated deadlocks.
ALONE_AS_IN_A_POOL = $(ALONE) --tokens kept --deadlocks repeated --warm 4

differential: setup ## the test suites of MariaDB, PyMySQL and mysql_async, direct and through sql (hours)
	cargo build -p kopek-sql --example alone
	tests/differential/run.py --prove
	tests/differential/run.py --proxy "$(ALONE)" --keep --modes plain ps cursor compress ssl together
	tests/differential/run.py --proxy "$(ALONE_AS_IN_A_POOL)" --manner pool --keep

differential-short: ## the part of them that leans most on the protocol
	cargo build -p kopek-sql --example alone
	python3 -m unittest discover -s tests/differential
	tests/differential/run.py --proxy "$(ALONE)" --keep --suites mtr --list tests/differential/short.txt

bench: setup ## speed and size, as ratios taken in one run
	cargo build --release -p kopek
	cargo build --release -p kopek-sql --example alone
	bench/sql.py --alone $(CARGO_TARGET_DIR)/release/examples/alone
	bench/run.py --kopek $(CARGO_TARGET_DIR)/release/kopek

chaos-db: setup ## the database under faults, judged by what clients saw; a long run (FAULTS=200 SEED=n)
	cargo build -p kopek -p kopek-tests --bin kopek --bin chaos_db
	$(CARGO_TARGET_DIR)/debug/chaos_db --faults $(FAULTS) $(if $(SEED),--seed $(SEED)) --out $(CARGO_TARGET_DIR)/chaos-db

chaos-editors: setup ## a WordPress and a MediaWiki are installed and edited while their writers are killed (MINUTES=60 SEED=n)
	cargo build -p kopek -p kopek-tests --bin kopek --bin chaos_editors
	$(CARGO_TARGET_DIR)/debug/chaos_editors --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

clean-caches: ## remove built images and build products that earlier runs cached
	rm -rf /var/cache/kopek
