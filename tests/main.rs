//! The one test binary: a module for each promise or room. All on a real Postgres that it starts itself.

mod support;

mod accept;
mod bad_input;
mod blocking;
mod cancel;
mod claims;
mod connect;
mod demo;
mod dev;
mod dsn;
mod dsn_docs;
mod dsn_leaks;
mod embed;
mod enqueue;
mod exactly_once;
mod exactly_once_model;
mod execute;
mod faults;
mod from_fastapi;
mod http_threads;
mod imports;
mod jobs_api;
mod layers;
mod leases;
mod migrations;
mod outages;
mod partitions;
mod pq;
mod probe;
mod query;
mod results;
mod roles;
mod secrets;
mod tls;
mod uploads;
