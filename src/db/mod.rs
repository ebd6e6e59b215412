//! How the queue's database is reached: pools, when to connect, what a server is looked at for first, silence that is
//! noticed, what became of a transaction, the async doorway, migrations, the schema as Diesel sees it, the targets that work
//! runs on, what their sessions are doing, and the private development cluster.
//!
//! Knows no job and no HTTP. [`doorway::Doorway`] is the only way by which an async thread meets a connection.

pub mod activity;
pub mod cluster;
pub mod doorway;
pub mod error;
pub mod fate;
mod flusher;
mod line;
pub mod migrations;
pub mod pool;
pub mod prepared;
pub mod prologue;
pub mod reach;
mod retrying;
pub mod rights;
pub mod roles;
pub mod schema;
pub mod sessions;
pub mod slots;
mod supervisor;
pub mod targets;
pub mod time_zone;
mod vet;
mod work_role;

pub use doorway::Doorway;
pub use error::DbError;
pub use prepared::prepared;
pub use reach::Source;
pub use retrying::RetryingPool;
pub use vet::preflight;
