//! The tables of the schema `slowlane` as Diesel sees them. A test compares this page with the catalog.
//!
//! Of `jobs` it has no column that only `queue/model/columns.rs` needs. Connections set `search_path`, so tables are named without their schema. `finished_jobs` is left out: it is read and
//! written by SQL alone, and has more columns than Diesel is built for here (its feature `64-column-tables`).
#![expect(missing_docs, reason = "the columns are documented in the migrations")]

/// SQL types that Diesel has no name for.
pub mod types {
    /// Postgres' 64-bit transaction id.
    #[derive(diesel::sql_types::SqlType, diesel::query_builder::QueryId)]
    #[diesel(postgres_type(name = "xid8"))]
    pub struct Xid8;
}

diesel::table! {
    jobs (id) {
        id -> Uuid,
        kind -> Text,
        queue -> Text,
        target -> Text,
        state -> Text,
        created_at -> Timestamptz,
        run_at -> Timestamptz,
        queued_xid -> Nullable<crate::db::schema::types::Xid8>,
        attempt -> Integer,
        interruptions -> Integer,
        lost_in_a_row -> Integer,
        interrupted_in_a_row -> Integer,
        lease -> BigInt,
        version -> BigInt,
        worker_id -> Nullable<Uuid>,
        started_at -> Nullable<Timestamptz>,
        deadline_at -> Nullable<Timestamptz>,
        backend_pid -> Nullable<Integer>,
        backend_start -> Nullable<Timestamptz>,
        cancel_requested_at -> Nullable<Timestamptz>,
        pause_requested_at -> Nullable<Timestamptz>,
        error -> Nullable<Json>,
        retry_of -> Nullable<Uuid>,
        statement_version -> Nullable<Text>,
        put_off_ms -> Nullable<BigInt>,
    }
}

diesel::table! {
    attempts (job_id, lease) {
        job_id -> Uuid,
        lease -> BigInt,
        attempt -> Integer,
        worker_id -> Uuid,
        started_at -> Timestamptz,
        finished_at -> Timestamptz,
        outcome -> Text,
        backend_pid -> Nullable<Integer>,
        error -> Nullable<Json>,
        statement_version -> Nullable<Text>,
    }
}

diesel::table! {
    job_log (job_id, lease, n) {
        job_id -> Uuid,
        lease -> BigInt,
        n -> Integer,
        at -> Timestamptz,
        level -> Text,
        source -> Text,
        sqlstate -> Nullable<Text>,
        message -> Text,
    }
}

diesel::table! {
    result_parts (job_id, lease, n) {
        job_id -> Uuid,
        lease -> BigInt,
        n -> Integer,
        data -> Bytea,
    }
}

diesel::table! {
    results (job_id) {
        job_id -> Uuid,
        lease -> BigInt,
        state -> Text,
        rows -> BigInt,
        bytes -> BigInt,
        truncated -> Bool,
        expires_at -> Timestamptz,
        manifest -> Json,
    }
}

diesel::table! {
    job_progress (job_id) {
        job_id -> Uuid,
        lease -> BigInt,
        phase -> Text,
        done -> BigInt,
        total -> Nullable<BigInt>,
        unit -> Text,
        basis -> Text,
        eta_ms -> Nullable<BigInt>,
        wait_event -> Nullable<Text>,
        blocked_by -> Nullable<Json>,
        temp_bytes -> Nullable<BigInt>,
        sampled_at -> Timestamptz,
    }
}

diesel::table! {
    run_history (fingerprint, ended_at) {
        fingerprint -> Bytea,
        ended_at -> Timestamptz,
        kind -> Text,
        target -> Text,
        duration_ms -> BigInt,
    }
}

diesel::table! {
    job_checkpoints (job_id) {
        job_id -> Uuid,
        lease -> BigInt,
        seq -> Integer,
        cursor -> Nullable<Json>,
        xid -> Nullable<crate::db::schema::types::Xid8>,
        system -> Nullable<Text>,
        timeline -> Nullable<Text>,
        outcome -> Nullable<Json>,
        next_cursor -> Nullable<Json>,
        updated_at -> Timestamptz,
        moved -> Bool,
        place -> Nullable<BigInt>,
        counted_from -> Array<BigInt>,
        leaves -> Bool,
        looked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    workers (id) {
        id -> Uuid,
        hostname -> Text,
        pid -> Integer,
        version -> Text,
        threads -> Integer,
        kinds -> Array<Text>,
        queues -> Array<Text>,
        started_at -> Timestamptz,
        beat_at -> Timestamptz,
        beat -> BigInt,
        stopping_at -> Nullable<Timestamptz>,
        targets -> Json,
    }
}

diesel::table! {
    stopped_workers (id) {
        id -> Uuid,
        stopped_at -> Timestamptz,
    }
}

diesel::table! {
    queues (name) {
        name -> Text,
        paused_at -> Nullable<Timestamptz>,
        paused_reason -> Nullable<Text>,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    idempotency_keys (principal, route, key) {
        principal -> Text,
        route -> Text,
        key -> Text,
        fingerprint -> Bytea,
        job_id -> Uuid,
        created_at -> Timestamptz,
    }
}

diesel::table! {
    uploads (id) {
        id -> Uuid,
        state -> Text,
        content_type -> Text,
        content_encoding -> Text,
        bytes -> BigInt,
        parts -> Integer,
        sha256 -> Nullable<Text>,
        created_at -> Timestamptz,
        expires_at -> Timestamptz,
    }
}

diesel::table! {
    upload_parts (upload_id, n) {
        upload_id -> Uuid,
        n -> Integer,
        data -> Bytea,
    }
}
