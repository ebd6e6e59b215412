# slowlane as a small image that runs as nobody, with nothing that it would have to write.
FROM rust:1-bookworm AS build
WORKDIR /src
# Symbols stay, for backtraces; line tables would be most of the image.
ENV CARGO_PROFILE_RELEASE_DEBUG=none CARGO_PROFILE_RELEASE_STRIP=debuginfo

# The dependencies alone, as a layer that stays as long as they do. Cargo wants every target's file to be there, and
# none of tests, benchmarks and examples is built here: their sections go.
COPY Cargo.toml Cargo.lock ./
RUN awk '/^\[/ { skip = /^\[\[(test|bench|example)\]\]/ } !skip' Cargo.toml > program.toml \
    && mv program.toml Cargo.toml \
    && mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && cargo build --release --locked --bin slowlane \
    && rm -r src target/release/slowlane

COPY migrations migrations
COPY demo demo
COPY src src
# Older than the empty ones that cargo has just built, they would be taken for them.
RUN touch src/main.rs src/lib.rs && cargo build --release --locked --bin slowlane

FROM debian:bookworm-slim
COPY --from=build /src/target/release/slowlane /usr/local/bin/slowlane
# Whom sslrootcert=system trusts.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
USER 65534:65534
ENTRYPOINT ["slowlane"]
CMD ["serve"]
