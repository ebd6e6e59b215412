# Three commands: `make run` serves on a private Postgres with demo data, `make test` runs every test, `make bench`
# measures everything that docs/performance.md shows.

.PHONY: run test bench lint fmt clean env test-compose

# Further arguments, such as ARGS="--listen 127.0.0.1:9000"
ARGS ?=

run: tools
	cargo build --release --locked
	$${CARGO_TARGET_DIR:-target}/release/slowlane dev $(ARGS)

test: tools
	cargo test --locked

# Cases and options, such as ARGS="drain --quick"
bench: tools
	cargo bench --locked --bench numbers -- $(ARGS)

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
