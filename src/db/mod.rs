//! How the queue's database is reached: pools, when to connect, what a server is looked at for first, silence that is
//! noticed, what became of a transaction, the async doorway, migrations, roles, and the schema as Diesel sees it.
//!
//! Knows no job, no HTTP and no target. [`doorway::Doorway`] is the only way by which an async thread meets a connection.

pub mod bounds;
pub mod doorway;
pub mod error;
pub mod fate;
pub(crate) mod line;
pub mod migrations;
pub mod pool;
pub mod prepared;
pub mod reach;
mod retrying;
pub mod roles;
pub mod schema;
pub mod slots;
pub mod time_zone;
pub(crate) mod vet;

pub use doorway::Doorway;
pub use error::DbError;
pub use prepared::prepared;
pub use reach::Source;
pub use retrying::RetryingPool;
pub use vet::preflight;
