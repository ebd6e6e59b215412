//! The roles and databases of a private cluster, as a program that starts one needs them: those of `slowlane dev` and of tests.

use crate::app;
use crate::cluster::{self, Cluster};
use crate::db::pool::Manager;
use crate::db::roles::{self, Passwords};
use crate::dsn::Dsn;

/// The logins of a private cluster.
#[derive(Clone)]
pub(crate) struct Logins {
    /// May do anything.
    pub superuser: Dsn,
    /// Owns the queue's schema.
    pub owner: Dsn,
    /// The service, on the queue's database.
    pub queue: Dsn,
    /// A work role, on a database of its own.
    pub work: Dsn,
}

impl Logins {
    /// Those of a cluster, with passwords that are kept in its folder. Nothing is looked up.
    pub fn of(cluster: &Cluster) -> Result<(Logins, Passwords), Box<dyn std::error::Error + Send + Sync>> {
        let password = |name| cluster::secret(cluster.folder(), name);
        let passwords = Passwords {
            owner: password("owner.password")?,
            queue: password("queue.password")?,
            demo: password("demo.password")?,
        };
        let logins = Logins {
            superuser: cluster.superuser("postgres")?,
            owner: cluster.login(roles::OWNER, &passwords.owner, roles::QUEUE_DATABASE)?,
            queue: cluster.login(roles::QUEUE, &passwords.queue, roles::QUEUE_DATABASE)?,
            work: cluster.login(roles::DEMO, &passwords.demo, roles::DEMO_DATABASE)?,
        };
        Ok((logins, passwords))
    }

    /// Makes roles and databases, and brings the queue's schema up to this build. May be repeated.
    pub fn set_up(&self, passwords: &Passwords) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        roles::set_up(&mut Manager::work(&self.superuser, "SELECT 1").open()?, passwords)?;
        app::migrate(&self.owner)?;
        Ok(())
    }
}
