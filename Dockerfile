# slowlane as a small image that runs as nobody.
FROM rust:1-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
# The dependencies alone, as a layer that stays as long as they do.
RUN mkdir src tests && echo 'fn main() {}' > src/main.rs && touch src/lib.rs tests/main.rs \
    && cargo build --release --locked && rm -r src tests
COPY migrations migrations
COPY demo demo
COPY src src
COPY tests/main.rs tests/main.rs
RUN touch src/main.rs src/lib.rs && cargo build --release --locked

FROM debian:bookworm-slim
COPY --from=build /src/target/release/slowlane /usr/local/bin/slowlane
USER 65534:65534
ENTRYPOINT ["slowlane"]
CMD ["serve"]
