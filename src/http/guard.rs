//! Who may ask. An endpoint that runs SQL on loopback is open to any web page of the same machine's browser, so the
//! `Host` must be one of ours, a foreign `Origin` is refused, and only with a token may slowlane listen beyond
//! loopback.

use std::net::{IpAddr, SocketAddr};

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header;
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, web};
use subtle::ConstantTimeEq;

use crate::http::problem::{Code, Problem};
use crate::http::routes::is_open;
use crate::http::{Common, HttpSettings};
use crate::queue::intake::request::Principal;

/// A listen address that isn't safe as things are.
#[derive(Debug, thiserror::Error)]
#[error(
    "refusing to listen on {0}, which other machines may reach, without a token: set SLOWLANE_API_TOKEN, or listen on \
     127.0.0.1"
)]
pub struct ListenError(SocketAddr);

/// Beyond loopback only with a token.
///
/// # Errors
/// With what to do about it.
pub fn check_listen(settings: &HttpSettings) -> Result<(), ListenError> {
    let open = settings.listen.iter().find(|address| !address.ip().is_loopback());
    match open.filter(|_| settings.api_token.is_none()) {
        Some(address) => Err(ListenError(*address)),
        None => Ok(()),
    }
}

pub(super) async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    if let Some(common) = request.app_data::<web::Data<Common>>()
        && let Err(problem) = check(&request, &common.settings)
    {
        let answer = problem.response(Some(request.path()));
        return Ok(request.into_response(answer).map_into_right_body());
    }
    request.extensions_mut().insert(Principal::default());
    Ok(next.call(request).await?.map_into_left_body())
}

fn check(request: &ServiceRequest, settings: &HttpSettings) -> Result<(), Problem> {
    let host = header_text(request, header::HOST).or_else(|| request.uri().authority().map(|a| a.as_str().to_owned()));
    if !host.as_deref().is_some_and(|host| is_ours(host, settings)) {
        return Err(Problem::new(Code::MisdirectedRequest, "the Host header names a host that is not served here")
            .field("Host", "expected a loopback name, the listen address or an allowed host")
            .hint("add the name with --allowed-host"));
    }
    if let Some(origin) = header_text(request, header::ORIGIN) {
        let same_host = origin.split_once("://").is_some_and(|(_, rest)| Some(rest) == host.as_deref());
        if !same_host {
            return Err(Problem::new(Code::ForeignOrigin, "the request comes from a page of another origin")
                .field("Origin", "expected no Origin, or this server's own"));
        }
    }
    check_token(request, settings)
}

fn check_token(request: &ServiceRequest, settings: &HttpSettings) -> Result<(), Problem> {
    let Some(token) = &settings.api_token else {
        return Ok(());
    };
    if is_open(request.path()) {
        return Ok(());
    }
    let given = header_text(request, header::AUTHORIZATION).unwrap_or_default();
    let given =
        given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, t)| t.trim());
    let matches = given.is_some_and(|given| bool::from(given.as_bytes().ct_eq(token.0.as_bytes())));
    if matches {
        return Ok(());
    }
    Err(Problem::new(Code::Unauthorized, "the request needs the header Authorization: Bearer with the server's token")
        .field("Authorization", "expected Bearer and the token")
        .header(header::WWW_AUTHENTICATE, "Bearer realm=\"slowlane\""))
}

fn header_text(request: &ServiceRequest, name: header::HeaderName) -> Option<String> {
    request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn is_ours(host: &str, settings: &HttpSettings) -> bool {
    let name = without_port(host);
    let is_loopback = name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback
        || name
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|ip| settings.listen.iter().any(|address| address.ip() == ip))
        || settings
            .allowed_hosts
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(name) || allowed.eq_ignore_ascii_case(host))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            if name.contains(':') && !name.starts_with('[') { host } else { name }
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn the_port_is_left_out() {
        for (host, name) in [
            ("localhost:8080", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:8080", "[::1]"),
            ("[::1]", "[::1]"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("evil.example:80", "evil.example"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
