# Three commands: `make run` serves on a private Postgres with demo data, `make test` runs every test, `make bench`
# measures everything that docs/performance.md shows.

.PHONY: run test test-versions bench lint fmt clean env test-compose compare-fastapi

# Further arguments, such as ARGS="--listen 127.0.0.1:9000"
ARGS ?=
VENV = "$${CARGO_TARGET_DIR:-target}/compare-fastapi/venv"

run: tools
	cargo build --release --locked
	$${CARGO_TARGET_DIR:-target}/release/slowlane dev $(ARGS)

# Most of a test's time is spent waiting: for a dead worker to be found dead, for an outage to pass.
test: tools
	@scripts/ensure python
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-4} cargo test --locked

# Every integration test on each supported version of Postgres: about half an hour. Chosen ones: VERSIONS="16 17"
VERSIONS ?= 14 15 16 17 18
test-versions: tools
	@scripts/ensure python
	@scripts/test-versions $(VERSIONS)

# Cases and options, such as ARGS="drain --quick"
bench: tools
	cargo bench --locked --bench numbers -- $(ARGS)

# FastAPI's BackgroundTasks and slowlane beside each other: some minutes. The packages of requirements.txt go into a
# virtual environment, which is made anew when they change.
compare-fastapi: tools
	@scripts/ensure venv
	@wanted=benches/compare/fastapi/requirements.txt && \
	{ cmp -s $$wanted $(VENV)/requirements.txt && $(VENV)/bin/python -c ''; } || \
	{ rm -rf $(VENV) && python3 -m venv $(VENV) && $(VENV)/bin/pip install -q --no-deps -r $$wanted && \
		$(VENV)/bin/pip check && cp $$wanted $(VENV)/; }
	cargo bench --locked --bench compare-fastapi -- --python "$$(cd $(VENV) && pwd)/bin/python" $(ARGS)

lint: tools
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items

# What docker-compose.yml reads: a token and passwords. One that is there is kept.
env:
	@scripts/make-env

# docker-compose.yml for real, on a Docker daemon: some minutes.
test-compose:
	@scripts/test-compose

fmt:
	cargo fmt

clean:
	cargo clean

.PHONY: tools
tools:
	@scripts/ensure postgres
	@command -v cargo >/dev/null || { echo 'slowlane needs a Rust toolchain: https://rustup.rs' >&2; exit 69; }
	@for program in cc perl make; do command -v $$program >/dev/null || { \
		echo "slowlane builds libpq and OpenSSL from source: apt-get install build-essential perl" >&2; exit 69; }; done
