//! `/healthz`, `/readyz` and `/metrics`: what an operator's machines ask.

use std::collections::BTreeMap;

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, web};
use serde::Serialize;

use crate::db::{DbError, migrations};
use crate::http::{Common, Usability, gauges};

#[derive(Serialize)]
struct Healthy {
    status: &'static str,
}

/// The process answers. Touches no database.
pub(super) async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(Healthy { status: "ok" })
}

#[derive(Serialize)]
struct Ready {
    status: &'static str,
    checks: Checks,
}

#[derive(Serialize)]
struct Checks {
    database: &'static str,
    migrations: &'static str,
    workers: &'static str,
    /// The targets that this process runs jobs on. One that is away doesn't make the process unready: the jobs of the
    /// others run.
    targets: BTreeMap<String, String>,
    stopping: bool,
}

/// The process can do its work: it reaches its database, the schema is the one that it was made for, and its
/// workers beat.
pub(super) async fn readyz(common: web::Data<Common>) -> HttpResponse {
    let status = common
        .doorway
        .run(|connection| {
            migrations::status(connection).map_err(|error| match error {
                migrations::MigrateError::Db(error) => error,
                other => DbError::Unavailable(other.to_string()),
            })
        })
        .await;
    let checks = Checks {
        database: if status.is_ok() { "ok" } else { "unavailable" },
        migrations: match &status {
            Ok(status) if status.is_current() => "ok",
            Ok(status) if status.unknown.is_empty() => "pending",
            Ok(_) => "newer than this slowlane",
            Err(_) => "unknown",
        },
        workers: if common.health.workers_ready() { "ok" } else { "not beating" },
        targets: (common.targets)().into_iter().map(|(name, usability)| (name, shown(usability))).collect(),
        stopping: common.health.is_stopping(),
    };
    let ready = checks.migrations == "ok" && checks.workers == "ok" && !checks.stopping;
    let mut response = HttpResponse::build(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE });
    if !ready {
        response.insert_header((header::RETRY_AFTER, "1"));
    }
    response.json(Ready { status: if ready { "ready" } else { "not ready" }, checks })
}

fn shown(usability: Usability) -> String {
    match usability {
        Usability::Usable => "ok".to_owned(),
        Usability::Unavailable => "unavailable".to_owned(),
        Usability::Refused(code) => format!("refused: {code}"),
    }
}

pub(super) async fn metrics(common: web::Data<Common>) -> HttpResponse {
    gauges::refresh(&common).await;
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8"))
        .body(common.metrics.render())
}
