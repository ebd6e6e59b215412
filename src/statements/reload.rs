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

/// Who wants the folder read.
enum Asked {
    /// An operator, by a signal.
    Signal,
    /// Another process, or a connection that may have missed it: mostly nothing has changed.
    Hint,
    /// A request, which waits.
    Request(oneshot::Sender<Reloaded>),
}

/// The way to the thread. Cloning it is cheap; the thread ends with the last clone.
#[derive(Clone)]
pub struct Reloader(Sender<Asked>);

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

    /// Has the folder read again for an operator, and waits for nothing.
    pub fn ask(&self) {
        self.send(Asked::Signal);
    }

    /// Has the folder read again because it may have changed; the log says so only when it has.
    pub fn hint(&self) {
        self.send(Asked::Hint);
    }

    fn send(&self, asked: Asked) {
        if self.0.send(asked).is_err() {
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
        self.0.send(Asked::Request(answer)).map_err(|_| DIED.to_owned())?;
        match tokio::time::timeout(PATIENCE, outcome).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(DIED.to_owned())),
            Err(_) => Err(format!("the folder of saved statements is still being read after {} s", PATIENCE.as_secs())),
        }
    }
}

fn serve(statements: &Statements, asked: &Receiver<Asked>) {
    while let Ok(first) = asked.recv() {
        // One look answers all who asked before it.
        let all: Vec<Asked> = std::iter::once(first).chain(asked.try_iter()).collect();
        let only_hints = all.iter().all(|asked| matches!(asked, Asked::Hint));
        let before = statements.loaded();
        let outcome = statements.reload();
        match &outcome {
            Ok(loaded) if only_hints && loaded.is_as(&before) => log::debug!("no saved statement has changed"),
            Ok(loaded) => say(loaded),
            Err(error) => log::error!("{error}; what was read before stays in effect"),
        }
        let outcome = outcome.map_err(|error| error.to_string());
        for asked in all {
            if let Asked::Request(answer) = asked {
                // Whoever asked may have gone.
                let _ = answer.send(outcome.clone());
            }
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
