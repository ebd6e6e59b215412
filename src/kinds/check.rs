//! `check`: a worker looks at its target as the doctor does, through its own connection string, role and network.
//!
//! `POST /v1/targets/{name}/check` puts one in and waits for it, so that only workers need to know a target. It uses a
//! session of its own beside the pool, so that each step of connecting is seen, and changes nothing.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::doctor::target::{Examined, FromQueue, examine};
use crate::doctor::{Connections, Report};
use crate::target::CONNECTIONS_BESIDE;
use crate::work::context::WorkContext;
use crate::work::{CHECK, Work, WorkError};

/// The arguments of a `check`: there are none.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {}

impl Work for Check {
    const KIND: &'static str = CHECK;
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = Report;

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Report, WorkError> {
        ctx.phase("looking at the target");
        let name = ctx.target_name().to_owned();
        let from_queue = ctx.ask_the_queue(|connection| FromQueue::read(connection, &name))?;
        let target = ctx.target();
        let settings = target.settings();
        let examined = Examined {
            name: &name,
            dsn: &settings.dsn,
            spec: &settings.spec,
            // What else of this process goes to the same server is known to whoever has all of its settings.
            connections: Connections { here: target.size().saturating_add(CONNECTIONS_BESIDE), beside: 0 },
            // Whoever ends the sessions of this attempt ends this one too.
            session_name: &ctx.lease().application_name(),
        };
        let report = examine(&examined, Ok(&from_queue), &|| ctx.check().is_ok());
        ctx.check()?;
        Ok(report)
    }
}
