//! The storage parameters of an index: which methods have them, and their words in SQL. Knows no database.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::IndexMethod;
use crate::work::ArgError;

/// The longest name in Postgres, in bytes: it would cut a longer one off.
pub(super) const MAX_NAME_BYTES: usize = 63;

/// The storage parameters of an index. Each is the server's default where it isn't given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageParameters {
    /// `btree`, `hash`, `gist`, `spgist`: how full a page is made, in percent: 10 to 100.
    pub fillfactor: Option<u32>,
    /// `btree`: equal values are stored once.
    pub deduplicate_items: Option<bool>,
    /// `gist`: how it is built.
    pub buffering: Option<Buffering>,
    /// `gin`: changes are gathered in a list first.
    pub fastupdate: Option<bool>,
    /// `gin`: the longest that list gets, in kB: 64 to 2,147,483,647.
    pub gin_pending_list_limit: Option<u32>,
    /// `brin`: pages of the table in one entry: 1 to 131,072.
    pub pages_per_range: Option<u32>,
    /// `brin`: new pages are summarized by autovacuum, once they are full.
    pub autosummarize: Option<bool>,
}

/// How a GiST index is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Buffering {
    /// With buffers from the start.
    On,
    /// Without.
    Off,
    /// With buffers once the index has outgrown the cache.
    Auto,
}

impl Buffering {
    fn as_str(self) -> &'static str {
        match self {
            Buffering::On => "on",
            Buffering::Off => "off",
            Buffering::Auto => "auto",
        }
    }
}

impl StorageParameters {
    /// Each that is given: its name, its value in SQL, and the methods that have it.
    fn given(&self) -> Vec<(&'static str, String, &'static [IndexMethod])> {
        use IndexMethod::{Brin, Btree, Gin, Gist, Hash, Spgist};
        let on_off = |on: bool| if on { "on" } else { "off" }.to_owned();
        let number = |number: u32| number.to_string();
        let all: [(&str, Option<String>, &[IndexMethod]); 7] = [
            ("fillfactor", self.fillfactor.map(number), &[Btree, Hash, Gist, Spgist]),
            ("deduplicate_items", self.deduplicate_items.map(on_off), &[Btree]),
            ("buffering", self.buffering.map(|how| how.as_str().to_owned()), &[Gist]),
            ("fastupdate", self.fastupdate.map(on_off), &[Gin]),
            ("gin_pending_list_limit", self.gin_pending_list_limit.map(number), &[Gin]),
            ("pages_per_range", self.pages_per_range.map(number), &[Brin]),
            ("autosummarize", self.autosummarize.map(on_off), &[Brin]),
        ];
        all.into_iter().filter_map(|(name, value, of)| Some((name, value?, of))).collect()
    }

    /// What is wrong with them for an index of this method.
    pub(super) fn check(&self, method: IndexMethod) -> Vec<ArgError> {
        let mut errors = Vec::new();
        for (name, _, of) in self.given().into_iter().filter(|(.., of)| !of.contains(&method)) {
            let of: Vec<&str> = of.iter().map(|method| method.as_str()).collect();
            let detail = format!("expected it with the method {} only", of.join(" or "));
            errors.push(ArgError::new(format!("/with/{name}"), detail));
        }
        for (name, value, least, most) in [
            ("fillfactor", self.fillfactor, 10, 100),
            ("gin_pending_list_limit", self.gin_pending_list_limit, 64, 2_147_483_647),
            ("pages_per_range", self.pages_per_range, 1, 131_072),
        ] {
            if value.is_some_and(|value| value < least || value > most) {
                errors.push(ArgError::new(format!("/with/{name}"), format!("expected {least} to {most}")));
            }
        }
        errors
    }

    /// Each as it stands behind WITH.
    pub(super) fn sql(&self) -> Vec<String> {
        self.given().into_iter().map(|(name, value, _)| format!("{name} = {value}")).collect()
    }
}
