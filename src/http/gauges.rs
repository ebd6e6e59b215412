//! What is measured from time to time instead of in a request: the size of results and uploads, the depth of the
//! queues.

use std::time::{Duration, Instant};

use actix_web::web;
use tokio::sync::Mutex;

use crate::http::Common;
use crate::metrics::PoolUse;
use crate::queue::JobState;
use crate::queue::fleet::queues;
use crate::queue::record::read;
use crate::results::store;
use crate::uploads;

/// States whose depth is shown even where it is 0.
const SHOWN: [JobState; 3] = [JobState::Scheduled, JobState::Queued, JobState::Running];
/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// When the depths were last looked at. Counting reads every unfinished job, so it is done for whoever scrapes, and
/// not more often than every 5 s.
#[derive(Default)]
pub struct DepthClock(Mutex<Option<Instant>>);

/// Starts the task that looks how full the store of results is: accepting depends on it. Must be called where tasks
/// can be spawned. A look that fails leaves the gauge as it was.
pub(super) fn start(common: web::Data<Common>) {
    actix_rt::spawn(async move {
        loop {
            let look = |connection: &mut _| {
                Ok(store::stored_bytes(connection)?.saturating_add(uploads::store::stored_bytes(connection)?))
            };
            if let Ok(bytes) = common.doorway.run(look).await {
                common.metrics.set_result_store_bytes(bytes);
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

/// Brings the gauges up to date for a scrape.
pub(super) async fn refresh(common: &Common) {
    pools(common);
    let mut looked = common.depths.0.lock().await;
    if looked.is_none_or(|at| at.elapsed() >= EVERY) && look(common).await {
        *looked = Some(Instant::now());
    }
}

/// A look that fails leaves the gauges as they were.
async fn look(common: &Common) -> bool {
    let look = |connection: &mut _| Ok((read::depths(connection)?, queues::all(connection)?));
    let Ok((depths, said)) = common.doorway.run(look).await else { return false };
    // A queue of ours that is empty says so: an alert can't tell a missing number from a good one.
    let ours =
        common.queues.iter().flat_map(|queue| SHOWN.map(|state| (queue.clone(), state.as_str().to_owned(), 0, 0.0)));
    let depths = depths.into_iter().map(|d| (d.queue, d.state.as_str().to_owned(), d.count, d.oldest_age_s));
    common.metrics.set_depths(ours.chain(depths));
    let ours = common.queues.iter().map(|queue| (queue.clone(), false));
    common.metrics.set_paused(ours.chain(said.into_iter().map(|row| (row.name, row.paused_at.is_some()))));
    true
}

fn pools(common: &Common) {
    let usage = common.doorway.usage();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let usage = PoolUse { size: count(usage.size), in_use: count(usage.busy), waiting: count(usage.waiting) };
    common.metrics.set_pool("api", usage);
    (common.pools)(&common.metrics);
}
