# The two commands of a fresh machine: `make demo` and `make test`. They need cargo, python3 and a C compiler.

PYTHON ?= python3
VENVS := target/venvs
# Django 6 wants Python 3.12 or later, which need not be the machine's python3.
ASK := -c 'import sys; print(sys.executable)' 2>/dev/null
PYTHON6 = $(firstword $(foreach v,3.14 3.13 3.12,$(shell python$(v) $(ASK))) \
	$(wildcard $(foreach v,3.14 3.13 3.12,$(HOME)/.pyenv/versions/$(v).*/bin/python)))

.PHONY: build demo test torture endurance fuzz bench check venvs clean

build:
	cargo build --release --locked

# Dispatches commands to a sample project through a local service, and shows what the service sees.
demo: $(VENVS)/django/ready
	cargo test --locked --quiet --test demo

test: venvs
	@unshare --mount true 2>/dev/null || unshare --user --map-root-user --mount true 2>/dev/null || \
		echo 'NOT TESTED: full and read-only disks, because nobody may mount anything here.'
	cargo test --locked -- --test-threads=8
	cargo test --locked --quiet --test torture -- --minutes 0.5

# Kills runners and shims where it hurts, and looks what is lost: a minute (half of one in `make test`), or `make torture MINUTES=15 SEED=4711`.
torture: $(VENVS)/django/ready
	cargo test --release --locked --quiet --test torture -- \
		$(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROUND),--round $(ROUND))

# The tests that take minutes each, on the optimized program: a GiB, ten minutes without the service, 10,000 executions.
endurance:
	cargo test --release --locked --test behaviour -- --ignored --nocapture --test-threads=8

# Looks for an input that breaks what src/properties.rs says: a minute for each target, or `make fuzz SECONDS=600`.
# It needs a nightly toolchain and `cargo install cargo-fuzz`.
SECONDS ?= 60
fuzz:
	for target in answers words lines mask; do \
		cargo +nightly fuzz run --fuzz-dir fuzz $$target -- -max_total_time=$(SECONDS) -timeout=10 || exit 1; \
	done

# What is measured is what is shipped: the static binary, if the target for it is installed.
MUSL = $(shell uname -m)-unknown-linux-musl
STATIC = $(and $(wildcard $(shell rustc --print sysroot)/lib/rustlib/$(MUSL)),$(MUSL))
# Compares with the published Python runner, in 25 minutes: `make bench RUNS=9`, `make bench ONLY=status,idle`, and
# `make bench QUICK=1` for a look. Only root may see how much memory a runner takes.
bench: $(VENVS)/django/ready $(VENVS)/wagtail/ready
	CC_$(subst -,_,$(MUSL))=gcc cargo build --release --locked $(if $(STATIC),--target $(STATIC))
	UNDER_TEST=$(CURDIR)/target/$(if $(STATIC),$(STATIC)/)release/djangocommand \
		cargo bench --locked --quiet --profile compare --bench compare -- \
		$(if $(QUICK),--quick) $(if $(RUNS),--runs $(RUNS)) $(if $(ONLY),--only $(ONLY))

# What must hold before a change is taken, besides the demo and the tests.
check:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --test demo --test torture --bench compare -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

venvs: $(VENVS)/django/ready $(VENVS)/django42/ready $(VENVS)/django6/ready

# The published Python runner is there to be compared with.
$(VENVS)/django/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip --quiet --disable-pip-version-check install 'django==5.2.*' djangocommand-runner==0.1.0
	touch $@

# A project of a real-life size, for `make bench`.
$(VENVS)/wagtail/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip --quiet --disable-pip-version-check install wagtail djangocommand-runner==0.1.0
	touch $@

$(VENVS)/django42/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip --quiet --disable-pip-version-check install 'django==4.2.*'
	touch $@

$(VENVS)/django6/ready:
ifeq ($(PYTHON6),)
	@echo 'NOT TESTED: Django 6, because there is no Python 3.12 or later here; put one on PATH and try again.'
	mkdir -p $(@D) && touch $(@D)/missing
else
	rm -rf $(@D)
	$(PYTHON6) -m venv $(@D)
	$(@D)/bin/pip --quiet --disable-pip-version-check install 'django>=6,<7'
	touch $@
endif

clean:
	cargo clean
