//! Pages of lists: `limit` and `cursor`, which every list has, and the link to the next page.

use actix_web::http::header;
use actix_web::{HttpResponseBuilder, web};
use uuid::Uuid;

use crate::http::extract::cursor;
use crate::http::problem::{Code, Problem};

/// Items on a page when the caller names no number.
pub const DEFAULT_LIMIT: i64 = 50;
/// The most items on a page.
pub const MAX_LIMIT: i64 = 500;

/// Which page of a list is asked for.
pub struct Paging {
    /// Items on it.
    pub limit: i64,
    /// The place behind which it begins.
    pub behind: Option<Uuid>,
    /// The parameters that say which list it is, as they were given.
    parameters: String,
    /// What tells the list apart from others: a cursor belongs to it.
    list: String,
}

/// A query parameter without a valid value.
pub fn invalid(name: &str, expected: impl Into<String>) -> Problem {
    Problem::new(Code::InvalidParameter, format!("the query parameter {name} is not valid")).field(name, expected)
}

impl Paging {
    /// Reads a query. `list` names the list itself; parameters other than `limit` and `cursor` go to `other`, and
    /// belong to what the list is.
    ///
    /// # Errors
    /// 400 for what can't be read, stands there twice or has no valid value.
    pub fn read(
        query_string: &str,
        list: &str,
        mut other: impl FnMut(&str, &str) -> Result<(), Problem>,
    ) -> Result<Paging, Problem> {
        let pairs = web::Query::<Vec<(String, String)>>::from_query(query_string)
            .map_err(|_| Problem::new(Code::MalformedRequest, "the query can't be read"))?
            .into_inner();
        let parameters: Vec<&str> = query_string
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.starts_with("cursor=") && !pair.starts_with("limit="))
            .collect();
        let parameters = parameters.join("&");
        let list = format!("{list}{parameters}");
        let mut paging = Paging { limit: DEFAULT_LIMIT, behind: None, parameters, list };
        let mut seen = Vec::new();
        for (name, value) in &pairs {
            if seen.contains(&name) {
                return Err(invalid(name, "expected it once"));
            }
            seen.push(name);
            match name.as_str() {
                "cursor" => paging.behind = Some(paging.place(value)?),
                "limit" => paging.limit = limit(value)?,
                _ => other(name, value)?,
            }
        }
        Ok(paging)
    }

    fn place(&self, text: &str) -> Result<Uuid, Problem> {
        cursor::decode(text, &self.list).ok_or_else(|| {
            Problem::new(Code::InvalidCursor, "the cursor was changed, or belongs to another list")
                .field("cursor", "expected a next_cursor that this list gave out")
        })
    }

    /// As many items as the page has; one more was asked for, to know whether there is another page.
    pub fn cut<'i, T>(&self, found: &'i [T]) -> (&'i [T], bool) {
        let length = usize::try_from(self.limit).unwrap_or(usize::MAX);
        match found.split_at_checked(length) {
            Some((page, rest)) => (page, !rest.is_empty()),
            None => (found, false),
        }
    }

    /// The cursor behind `last`, put into the response as the link to the next page too.
    pub fn next(&self, response: &mut HttpResponseBuilder, path: &str, last: Uuid) -> String {
        let cursor = cursor::encode(last, &self.list);
        let separator = if self.parameters.is_empty() { "" } else { "&" };
        let link = format!("<{path}?{}{separator}limit={}&cursor={cursor}>; rel=\"next\"", self.parameters, self.limit);
        response.insert_header((header::LINK, link));
        cursor
    }
}

fn limit(value: &str) -> Result<i64, Problem> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| invalid("limit", format!("expected an integer from 1 to {MAX_LIMIT}")))
}
