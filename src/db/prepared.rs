//! SQL of our own whose statement stays prepared on its connection: parsed and planned once, not each time.
//!
//! `diesel::sql_query` is never kept prepared, and planning a statement over partitioned tables takes longer than
//! running it. This is the same, for texts of which there are few: each different text is kept for as long as its
//! connection. Leave out those whose best plan depends on their values.

use std::borrow::Cow;
use std::marker::PhantomData;

use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::serialize::ToSql;
use diesel::sql_types::{HasSqlType, Untyped};

/// A statement with `$1`, `$2` and so on for its values.
pub fn prepared<'s>(sql: impl Into<Cow<'s, str>>) -> Statement<'s> {
    Statement { sql: sql.into() }
}

/// See [`prepared`].
pub struct Statement<'s> {
    sql: Cow<'s, str>,
}

/// A statement with one more value.
pub struct Bound<Q, V, ST> {
    query: Q,
    value: V,
    sql_type: PhantomData<ST>,
}

impl<Q, V, ST> Bound<Q, V, ST> {
    fn new(query: Q, value: V) -> Bound<Q, V, ST> {
        Bound { query, value, sql_type: PhantomData }
    }

    /// Gives the next parameter its value.
    pub fn bind<ST2, V2>(self, value: V2) -> Bound<Self, V2, ST2> {
        Bound::new(self, value)
    }
}

impl Statement<'_> {
    /// Gives `$1` its value.
    pub fn bind<ST, V>(self, value: V) -> Bound<Self, V, ST> {
        Bound::new(self, value)
    }
}

impl QueryFragment<Pg> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(&self.sql);
        // Diesel writes a placeholder for each value where it is pushed. The text has its own: Diesel's stand behind it,
        // in a comment that ends with the text.
        out.push_sql("\n-- ");
        Ok(())
    }
}

impl<Q, V, ST> QueryFragment<Pg> for Bound<Q, V, ST>
where
    Pg: HasSqlType<ST>,
    Q: QueryFragment<Pg>,
    V: ToSql<ST, Pg>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        self.query.walk_ast(out.reborrow())?;
        out.push_bind_param::<ST, V>(&self.value)
    }
}

// Statements are told apart by their text.
impl QueryId for Statement<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl<Q, V, ST> QueryId for Bound<Q, V, ST> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl<Q, V, ST> Query for Bound<Q, V, ST> {
    type SqlType = Untyped;
}

impl RunQueryDsl<PgConnection> for Statement<'_> {}
impl<Q, V, ST> RunQueryDsl<PgConnection> for Bound<Q, V, ST> {}
