//! What is measured from time to time instead of in a request: the depth of the queues and the size of the results.

use std::time::Duration;

use crate::http::State;
use crate::metrics::PoolUse;
use crate::queue::{JobState, read};
use crate::results::store;

/// States whose depth is shown even where it is 0.
const SHOWN: [JobState; 3] = [JobState::Scheduled, JobState::Queued, JobState::Running];
/// Between two looks.
const EVERY: Duration = Duration::from_secs(5);

/// Starts the task that looks. Must be called where tasks can be spawned.
pub(super) fn start(shared: State) {
    actix_rt::spawn(async move {
        loop {
            look(&shared).await;
            tokio::time::sleep(EVERY).await;
        }
    });
}

/// A look that fails leaves the gauges as they were.
async fn look(shared: &State) {
    // Apart, because one guards the store and the other may take long.
    if let Ok(bytes) = shared.state.doorway.run(store::stored_bytes).await {
        shared.state.metrics.set_result_store_bytes(bytes);
    }
    if let Ok(depths) = shared.state.doorway.run(read::depths).await {
        // A queue of ours that is empty says so: an alert can't tell a missing number from a good one.
        let ours = shared
            .state
            .queues
            .iter()
            .flat_map(|queue| SHOWN.map(|state| (queue.clone(), state.as_str().to_owned(), 0, 0.0)));
        let depths = depths.into_iter().map(|d| (d.queue, d.state.as_str().to_owned(), d.count, d.oldest_age_s));
        shared.state.metrics.set_depths(ours.chain(depths));
    }
}

/// Brings the gauges of the pools up to date.
pub(super) fn pools(shared: &State) {
    let usage = shared.state.doorway.usage();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let usage = PoolUse { size: count(usage.size), in_use: count(usage.busy), waiting: count(usage.waiting) };
    shared.state.metrics.set_pool("api", usage);
    (shared.state.pools)(&shared.state.metrics);
}
