//! The table of routes: what stands in it is served, under the token, with its methods and no others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use slowlane::dsn::Secret;
use slowlane::http::routes::{Body, ROUTES, Scope};

use crate::support::app::TestApp;

const TOKEN: (&str, &str) = ("authorization", "Bearer right-token");

/// A path that the route answers: no job, worker or queue is called so.
fn of(path: &str) -> String {
    path.replace("{id}", "0197f000-0000-7000-8000-000000000000").replace("{name}", "nobodys")
}

#[test]
fn every_route_is_served_with_its_methods_and_no_others() {
    let app = TestApp::with(|config| config.api_token = Some(Secret::new("right-token")));
    let mut methods: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for route in &ROUTES {
        let known = methods.entry(route.path).or_default();
        for method in route.methods {
            assert!(known.insert(method.as_str()), "{} {} stands there twice", method, route.path);
        }
    }
    for (path, methods) in &methods {
        let answer = app.send("PATCH", &of(path), &[TOKEN], b"");
        assert_eq!(answer.status, 405, "{path}");
        let allowed: BTreeSet<&str> = answer.header("allow").unwrap().split(", ").collect();
        assert_eq!(&allowed, methods, "{path}");
    }
    for route in &ROUTES {
        for method in route.methods {
            let headers: &[(&str, &str)] = match route.body {
                Body::Json => &[TOKEN, ("content-type", "application/json")],
                _ => &[TOKEN],
            };
            let answer = app.send(method.as_str(), &of(route.path), headers, b"");
            let (method, path) = (method.as_str(), route.path);
            // Whatever a handler says of a thing that isn't there, it was reached.
            assert!(
                answer.status != 405 && answer.status != 500 && answer.status != 401,
                "{method} {path}: {}",
                answer.status
            );
            let no_route = answer.status == 404 && method != "HEAD" && answer.problem().1 == "not_found";
            assert!(!no_route, "{method} {path}");
        }
    }
    assert_eq!(app.send("GET", "/v1/nothing", &[TOKEN], b"").problem().0, 404);
}

#[test]
fn every_route_but_the_open_ones_needs_the_token() {
    let app = TestApp::with(|config| config.api_token = Some(Secret::new("right-token")));
    let mut open = BTreeSet::new();
    for route in &ROUTES {
        for method in route.methods.iter().filter(|method| method.as_str() != "HEAD") {
            let answer = app.send(method.as_str(), &of(route.path), &[], json!({}).to_string().as_bytes());
            match route.scope {
                Scope::Open => {
                    assert_ne!(answer.status, 401, "{}", route.path);
                    open.insert(route.path);
                }
                _ => assert_eq!(answer.problem().1, "unauthorized", "{method} {}", route.path),
            }
        }
    }
    assert_eq!(open, BTreeSet::from(["/healthz", "/readyz"]));
}
