//! What an index is, as the catalog has it, in words that can be compared: two indexes are equal when the server made
//! the same of both, however they were written.

use crate::pq::{PqError, Session};

/// The words of an index, by the arguments that ask for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    method: String,
    unique: String,
    nulls_not_distinct: String,
    columns: String,
    include: String,
    condition: String,
    with: String,
    tablespace: String,
    /// It can do less or more than any index of `create_index`: that of an exclusion or deferrable constraint.
    constraint: String,
}

/// What of two indexes has to be the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Alike {
    /// All but where it is, unless that was asked for.
    Here,
    /// All of that.
    HereAndThere,
    /// What the server wants of the parts of a partitioned index.
    Part,
}

/// An index.
#[derive(Clone, Debug)]
pub(super) struct Described {
    pub oid: String,
    /// The oid of its table.
    pub table: String,
    /// Schema and name, quoted where SQL needs it.
    pub qualified: String,
    /// It is one of a partitioned table: a sum of others.
    pub partitioned: bool,
    pub valid: bool,
    /// The oid of the partitioned index that it is a part of.
    pub part_of: Option<String>,
    pub words: Words,
}

impl Words {
    /// What is different, in words for people; empty when nothing is.
    pub fn differences(&self, wanted: &Words, alike: Alike) -> Vec<String> {
        let of_a_part: [(&str, &str, &str); 7] = [
            ("method", &self.method, &wanted.method),
            ("unique", &self.unique, &wanted.unique),
            ("nulls_not_distinct", &self.nulls_not_distinct, &wanted.nulls_not_distinct),
            ("columns", &self.columns, &wanted.columns),
            ("include", &self.include, &wanted.include),
            ("where", &self.condition, &wanted.condition),
            ("constraint", &self.constraint, &wanted.constraint),
        ];
        let of_itself = [("with", self.with.as_str(), wanted.with.as_str())];
        let of_its_place = [("tablespace", self.tablespace.as_str(), wanted.tablespace.as_str())];
        let itself = of_itself.into_iter().filter(|_| alike != Alike::Part);
        let place = of_its_place.into_iter().filter(|_| alike == Alike::HereAndThere);
        let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
        of_a_part
            .into_iter()
            .chain(itself)
            .chain(place)
            .filter(|(_, there, wanted)| there != wanted)
            .map(|(name, there, wanted)| format!("{name} (there: {}; wanted: {})", or_none(there), or_none(wanted)))
            .collect()
    }

    pub fn in_tablespace(self, name: &str) -> Words {
        Words { tablespace: name.to_owned(), ..self }
    }
}

/// The indexes `i` (their `pg_class` is `x`) for which a condition holds.
pub(super) fn described(
    session: &mut Session,
    condition: &str,
    params: &[Option<&str>],
) -> Result<Vec<Described>, PqError> {
    let nulls = if session.server_version() >= 150_000 { "i.indnullsnotdistinct" } else { "false" };
    // An element of the key: what it is, its collation, its operator class with that one's options, and its order.
    let key = "pg_catalog.pg_get_indexdef(i.indexrelid, k.n, false)
        || coalesce((SELECT pg_catalog.format(' COLLATE %I.%I', cn.nspname, co.collname) FROM pg_catalog.pg_collation co
                       JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace WHERE co.oid = i.indcollation[k.n - 1]), '')
        || coalesce((SELECT pg_catalog.format(' %I.%I', pn.nspname, o.opcname) FROM pg_catalog.pg_opclass o
                       JOIN pg_catalog.pg_namespace pn ON pn.oid = o.opcnamespace WHERE o.oid = i.indclass[k.n - 1]), '')
        || coalesce((SELECT ' (' || pg_catalog.array_to_string(t.attoptions, ', ') || ')' FROM pg_catalog.pg_attribute t
                      WHERE t.attrelid = i.indexrelid AND t.attnum = k.n), '')
        || CASE WHEN a.amname = 'btree' THEN
             CASE WHEN i.indoption[k.n - 1] & 1 = 1 THEN ' DESC' ELSE '' END
             || CASE i.indoption[k.n - 1] & 3 WHEN 2 THEN ' NULLS FIRST' WHEN 1 THEN ' NULLS LAST' ELSE '' END ELSE '' END";
    let rows = session.query(
        &format!(
            "SELECT i.indexrelid, i.indrelid, pg_catalog.format('%I.%I', xn.nspname, x.relname), x.relkind = 'I',
                    i.indisvalid AND i.indisready AND i.indislive,
                    (SELECT h.inhparent FROM pg_catalog.pg_inherits h WHERE h.inhrelid = i.indexrelid LIMIT 1),
                    a.amname, i.indisunique, {nulls},
                    (SELECT pg_catalog.string_agg({key}, ', ' ORDER BY k.n)
                       FROM pg_catalog.generate_series(1, i.indnkeyatts::int) k(n)),
                    (SELECT pg_catalog.string_agg(pg_catalog.pg_get_indexdef(i.indexrelid, k.n, false), ', ' ORDER BY k.n)
                       FROM pg_catalog.generate_series(i.indnkeyatts + 1, i.indnatts::int) k(n)),
                    pg_catalog.pg_get_expr(i.indpred, i.indrelid),
                    (SELECT pg_catalog.string_agg(p.option_name || ' = ' ||
                              CASE WHEN p.option_name IN ('deduplicate_items', 'fastupdate', 'autosummarize')
                                   THEN CASE WHEN p.option_value::bool THEN 'on' ELSE 'off' END
                                   ELSE pg_catalog.lower(p.option_value) END, ', ' ORDER BY p.option_name)
                       FROM pg_catalog.pg_options_to_table(x.reloptions) p),
                    (SELECT s.spcname FROM pg_catalog.pg_tablespace s WHERE s.oid =
                            CASE WHEN x.reltablespace <> 0 THEN x.reltablespace
                                 ELSE (SELECT d.dattablespace FROM pg_catalog.pg_database d
                                        WHERE d.datname = pg_catalog.current_database()) END),
                    CASE WHEN i.indisexclusion THEN 'that of an exclusion constraint'
                         WHEN NOT i.indimmediate THEN 'that of a deferrable constraint' END
               FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
               JOIN pg_catalog.pg_namespace xn ON xn.oid = x.relnamespace
               JOIN pg_catalog.pg_am a ON a.oid = x.relam
              WHERE {condition} ORDER BY x.relname, i.indexrelid"
        ),
        params,
    )?;
    let text = |row, column| rows.get(row, column).unwrap_or_default().to_owned();
    let is = |row, column| rows.get(row, column) == Some("t");
    let yes = |row, column| if is(row, column) { "yes" } else { "no" }.to_owned();
    let one = |row| Described {
        oid: text(row, 0),
        table: text(row, 1),
        qualified: text(row, 2),
        partitioned: is(row, 3),
        valid: is(row, 4),
        part_of: rows.get(row, 5).map(str::to_owned),
        words: Words {
            method: text(row, 6),
            unique: yes(row, 7),
            nulls_not_distinct: yes(row, 8),
            columns: text(row, 9),
            include: text(row, 10),
            condition: text(row, 11),
            with: text(row, 12),
            tablespace: text(row, 13),
            constraint: text(row, 14),
        },
    };
    Ok((0..rows.len()).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::{Alike, Words};

    #[test]
    fn each_difference_is_named_with_both_sides() {
        let there = Words { condition: "(a > 1)".to_owned(), with: "fillfactor = 70".to_owned(), ..Words::default() };
        let wanted = Words { tablespace: "fast".to_owned(), ..Words::default() };
        assert_eq!(
            there.differences(&wanted, Alike::HereAndThere),
            [
                "where (there: (a > 1); wanted: none)",
                "with (there: fillfactor = 70; wanted: none)",
                "tablespace (there: none; wanted: fast)"
            ]
        );
        assert_eq!(there.differences(&wanted, Alike::Here).len(), 2);
        assert_eq!(there.differences(&wanted, Alike::Part).len(), 1);
        assert!(there.differences(&there.clone(), Alike::HereAndThere).is_empty());
    }
}
