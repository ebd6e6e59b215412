//! The addresses of a process: listened on before anything else, so that a wrong one is told at once.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use crate::app::AppError;
use crate::config::Config;
use crate::http::{self, HttpSettings, Token};

/// How long requests may take to end when everything else has.
pub(super) const HTTP_GRACE: Duration = Duration::from_secs(5);

/// Where requests arrive.
pub struct Listeners {
    /// For the whole contract.
    pub(super) api: Option<TcpListener>,
    /// For probes alone.
    pub(super) probes: Option<TcpListener>,
}

/// Where requests are answered.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// The whole contract.
    pub api: Option<SocketAddr>,
    /// Probes alone.
    pub probes: Option<SocketAddr>,
}

impl Listeners {
    /// Listens as the settings say. Done before anything else, so that a wrong address is told at once.
    ///
    /// # Errors
    /// When an address can't be used, or would be reachable from other machines without a token.
    pub fn open(config: &Config) -> Result<Listeners, AppError> {
        http_settings(config)?;
        let api = config.roles.http.then(|| listen(config.listen, "--listen")).transpose()?;
        let probes = config.probe_listen.map(|address| listen(address, "--probe-listen")).transpose()?;
        Ok(Listeners { api, probes })
    }

    /// Where they listen.
    ///
    /// # Errors
    /// When the system doesn't say.
    pub fn addresses(&self) -> std::io::Result<Addresses> {
        let address = |listener: &Option<TcpListener>| listener.as_ref().map(TcpListener::local_addr).transpose();
        Ok(Addresses { api: address(&self.api)?, probes: address(&self.probes)? })
    }
}

fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener, AppError> {
    TcpListener::bind(address).map_err(|error| {
        AppError::Listen(match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("{address} is in use by another program: stop that one, or choose another address ({flag})")
            }
            _ => format!("can't listen on {address}: {error}"),
        })
    })
}

/// The settings of the HTTP side.
///
/// # Errors
/// When it would be reachable from other machines without a token.
pub(super) fn http_settings(config: &Config) -> Result<HttpSettings, AppError> {
    let settings = HttpSettings {
        listen: config.roles.http.then_some(config.listen).into_iter().chain(config.probe_listen).collect(),
        allowed_hosts: config.allowed_hosts.clone(),
        api_token: config.api_token.as_ref().map(|token| Token::new(token.expose())),
        result_store_bytes: config.result_store_bytes,
        upload_limit_bytes: config.upload_limit_bytes,
        upload_idle: config.upload_idle_timeout,
        grace: HTTP_GRACE,
    };
    http::check_listen(&settings)?;
    Ok(settings)
}
