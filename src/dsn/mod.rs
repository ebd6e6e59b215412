//! What a connection string means. Pure: no I/O, no environment, no libpq.
#![allow(missing_docs)]
pub struct Secret(String);
impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}
#[derive(Clone)]
pub struct Dsn {}
impl Dsn {
    pub fn for_connecting(self) -> Dsn {
        self
    }
    pub fn with(self, _k: &str, _v: &str) -> Dsn {
        self
    }
    pub fn conninfo(&self) -> Secret {
        Secret(String::new())
    }
    pub fn masked(&self) -> String {
        String::new()
    }
}
