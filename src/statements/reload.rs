//! Reading the folder again, on a thread of its own: for a signal, for a request and for a hint from another process.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::statements::set::{Loaded, Statements};

/// How long whoever asks waits: a folder may lie on a disk that doesn't answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a look, or why there was none.
pub type Reloaded = Result<Arc<Loaded>, String>;

/// The way to the thread. Cloning it is cheap; the thread ends with the last clone.
#[derive(Clone)]
pub struct Reloader(Sender<Option<oneshot::Sender<Reloaded>>>);

impl Reloader {
    /// Starts the thread `slowlane-saved`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(statements: Arc<Statements>) -> std::io::Result<Reloader> {
        let (sender, asked) = channel();
        let serve = move || serve(&statements, &asked);
        std::thread::Builder::new().name("slowlane-saved".to_owned()).spawn(serve)?;
        Ok(Reloader(sender))
    }

    /// Has the folder read again, and waits for nothing.
    pub fn ask(&self) {
        if self.0.send(None).is_err() {
            log::error!("the thread that reads saved statements has ended");
        }
    }

    /// Has the folder read again. Must be called where tasks can wait.
    ///
    /// # Errors
    /// When the folder can't be read, or nobody is there to read it.
    pub async fn reload(&self) -> Reloaded {
        const DIED: &str = "the thread that reads saved statements has ended";
        let (answer, outcome) = oneshot::channel();
        self.0.send(Some(answer)).map_err(|_| DIED.to_owned())?;
        match tokio::time::timeout(PATIENCE, outcome).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(DIED.to_owned())),
            Err(_) => Err(format!("the folder of saved statements is still being read after {} s", PATIENCE.as_secs())),
        }
    }
}

fn serve(statements: &Statements, asked: &Receiver<Option<oneshot::Sender<Reloaded>>>) {
    while let Ok(first) = asked.recv() {
        // One look answers all who asked before it.
        let waiting: Vec<_> = std::iter::once(first).chain(asked.try_iter()).flatten().collect();
        let outcome = statements.reload();
        match &outcome {
            Ok(loaded) => say(loaded),
            Err(error) => log::error!("{error}; what was read before stays in effect"),
        }
        let outcome = outcome.map_err(|error| error.to_string());
        for answer in waiting {
            // Whoever asked has gone.
            let _ = answer.send(outcome.clone());
        }
    }
}

/// Says what a look came to, and each file that can't be used.
pub fn say(loaded: &Loaded) {
    log::info!(statements = loaded.statements.len(), broken = loaded.broken.len(); "read the saved statements");
    for broken in &loaded.broken {
        let stays = broken.stale.as_ref().map_or("", |_| "; it stays in effect as it was before");
        log::warn!("{}, {}{stays}", broken.file, broken.error);
    }
}
