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
    Statement { sql: sql.into(), values: Vec::new() }
}

/// See [`prepared`].
pub struct Statement<'s> {
    sql: Cow<'s, str>,
    values: Vec<Box<dyn QueryFragment<Pg> + 's>>,
}

impl<'s> Statement<'s> {
    /// Gives the next parameter its value.
    pub fn bind<ST, V>(mut self, value: V) -> Statement<'s>
    where
        Pg: HasSqlType<ST>,
        V: ToSql<ST, Pg> + 's,
        ST: 's,
    {
        self.values.push(Box::new(Value { value, sql_type: PhantomData::<ST> }));
        self
    }
}

struct Value<V, ST> {
    value: V,
    sql_type: PhantomData<ST>,
}

impl<V, ST> QueryFragment<Pg> for Value<V, ST>
where
    Pg: HasSqlType<ST>,
    V: ToSql<ST, Pg>,
{
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_bind_param::<ST, V>(&self.value)
    }
}

impl QueryFragment<Pg> for Statement<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(&self.sql);
        // Diesel writes a placeholder for each value where it is pushed. The text has its own: Diesel's stand behind it,
        // in a comment that ends with the text.
        out.push_sql("\n-- ");
        self.values.iter().try_for_each(|value| value.walk_ast(out.reborrow()))
    }
}

// Statements are told apart by their text.
impl QueryId for Statement<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Statement<'_> {
    type SqlType = Untyped;
}

impl RunQueryDsl<PgConnection> for Statement<'_> {}
