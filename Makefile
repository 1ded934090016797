# The two commands of a fresh machine: `make demo` and `make test`. They need cargo, python3 and a C compiler.
# `make install` and `make static` are for servers; the README says more of each.

PREFIX ?= /usr/local
DESTDIR ?=
PYTHON ?= python3
VENVS := target/venvs
# Django 6 wants Python 3.12 or later, which need not be the machine's python3.
ASK := -c 'import sys; print(sys.executable)' 2>/dev/null
PYTHON6 = $(firstword $(foreach v,3.14 3.13 3.12,$(shell python$(v) $(ASK))) \
	$(wildcard $(foreach v,3.14 3.13 3.12,$(HOME)/.pyenv/versions/$(v).*/bin/python)))

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
SOURCES := Cargo.toml Cargo.lock $(shell find src -type f)
# What runs without any library, on these machines.
TARGETS := x86_64-unknown-linux-musl aarch64-unknown-linux-musl
STATIC := $(TARGETS:%=target/%/release/djangocommand)
# What is installed, and what prints its man page and completions: the static binary of this machine where there is one.
OF_HOST := target/$(shell uname -m)-unknown-linux-musl/release/djangocommand
BINARY ?= $(or $(wildcard $(OF_HOST)),target/release/djangocommand)
GENERATOR ?= $(BINARY)

.PHONY: build static dist install uninstall always demo picture test torture endurance fuzz bench check venvs clean

build: target/release/djangocommand

target/release/djangocommand: $(SOURCES)
	cargo build --release --locked

# Needs `rustup target add` of both, and for aarch64 on another machine gcc-aarch64-linux-gnu and libc6-dev-arm64-cross.
static: $(STATIC)

# The linker comes with Rust, and only ring's C wants a compiler of the target. Packed relocations, frames that have a
# pointer, and functions of the same code folded into one (nothing here compares functions) spare 170 kB. The paths of this
# machine stay out of the binary, so that two builds of one commit are the same, byte for byte: also those of Rust's own
# sources, which the compiler names where they are installed (rust-src).
SYSROOT := $(shell rustc --print sysroot 2>/dev/null)
RUST_COMMIT := $(shell rustc -vV 2>/dev/null | sed -n 's/^commit-hash: //p')
$(STATIC): export CC_x86_64_unknown_linux_musl ?= $(if $(filter x86_64,$(shell uname -m)),gcc,x86_64-linux-gnu-gcc)
$(STATIC): export CC_aarch64_unknown_linux_musl ?= $(if $(filter aarch64,$(shell uname -m)),gcc,aarch64-linux-gnu-gcc)
$(STATIC): export CFLAGS := -ffile-prefix-map=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
$(STATIC): export RUSTFLAGS := -C linker=rust-lld -C link-arg=--pack-dyn-relocs=relr -C link-arg=--icf=all \
	-C force-frame-pointers=yes \
	--remap-path-prefix=$(CURDIR)=/djangocommand --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo \
	--remap-path-prefix=$(SYSROOT)/lib/rustlib/src/rust=/rustc/$(RUST_COMMIT)
$(STATIC): target/%/release/djangocommand: $(SOURCES)
	cargo build --release --locked --target $*

# A tree that is unpacked over /usr/local, for each target: tar -xzf FILE --strip-components=1 -C /usr/local
dist: $(TARGETS:%=target/dist/djangocommand-$(VERSION)-%.tar.gz)
	cd target/dist && sha256sum djangocommand-$(VERSION)-*.tar.gz > SHA256SUMS

# Packed each time, because its times are those of the commit.
target/dist/djangocommand-$(VERSION)-%.tar.gz: target/%/release/djangocommand $(OF_HOST) always
	rm -rf target/dist/$*
	$(MAKE) install BINARY=$< GENERATOR=$(OF_HOST) PREFIX=/usr/local DESTDIR=target/dist/$*
	install -D -m 644 -t target/dist/$*/usr/local/share/doc/djangocommand README.md LICENSE
	tar --create --sort=name --mtime=@$$(git log -1 --format=%ct 2>/dev/null || echo 0) --owner=0 --group=0 --numeric-owner --mode=go+rX,go-w \
		--transform 's,^\.,djangocommand-$(VERSION),' -C target/dist/$*/usr/local . | gzip -9 --no-name > $@

INSTALLED := bin/djangocommand share/man/man1/djangocommand.1 share/bash-completion/completions/djangocommand \
	share/zsh/site-functions/_djangocommand share/fish/vendor_completions.d/djangocommand.fish \
	lib/systemd/system/djangocommand@.service
TO := $(DESTDIR)$(PREFIX)

install: $(BINARY)
	install -d $(sort $(dir $(INSTALLED:%=$(TO)/%)))
	install -m 755 $(BINARY) $(TO)/bin/djangocommand
	$(GENERATOR) generate man > $(TO)/share/man/man1/djangocommand.1
	$(GENERATOR) generate bash > $(TO)/share/bash-completion/completions/djangocommand
	$(GENERATOR) generate zsh > $(TO)/share/zsh/site-functions/_djangocommand
	$(GENERATOR) generate fish > $(TO)/share/fish/vendor_completions.d/djangocommand.fish
	$(GENERATOR) generate systemd > $(TO)/lib/systemd/system/djangocommand@.service
	sed -i -E 's,^(Exec(Start|Reload))=[^ ]*,\1=$(PREFIX)/bin/djangocommand,' \
		$(TO)/lib/systemd/system/djangocommand@.service
	chmod 644 $(filter-out %/bin/djangocommand,$(INSTALLED:%=$(TO)/%))

uninstall:
	rm -f $(INSTALLED:%=$(TO)/%)

# Dispatches commands to a sample project through a local service, and shows what the service sees.
demo: $(VENVS)/django/ready
	cargo test --locked --quiet --test demo

# The picture in the README, of a demo that is run for it.
picture: $(VENVS)/django/ready
	cargo test --locked --quiet --test demo | $(PYTHON) tests/demo/picture.py > tests/demo/demo.svg

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
MUSL := $(SYSROOT)/lib/rustlib/$(shell uname -m)-unknown-linux-musl
MEASURED := $(if $(wildcard $(MUSL)),$(OF_HOST),target/release/djangocommand)
# Compares with the published Python runner, in 28 minutes: `make bench RUNS=9`, `make bench ONLY=status,idle`, and
# `make bench QUICK=1` for a look. Only root may see how much memory a runner takes.
bench: $(MEASURED) $(VENVS)/django/ready $(VENVS)/wagtail/ready
	UNDER_TEST=$(CURDIR)/$(MEASURED) cargo bench --locked --quiet --profile compare --bench compare -- \
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
