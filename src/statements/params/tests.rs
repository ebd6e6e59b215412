//! Tests of parameters of a saved statement.

use toml::de::DeTable;

use super::*;
use crate::statements::literal;

fn param(text: &str) -> Result<Param, String> {
    let mut table = DeTable::parse(text).map_err(|error| error.to_string())?;
    literal::keep_of(table.get_mut()).map_err(|error| error.message)?;
    Param::read(ParamEntry::deserialize(toml::Deserializer::from(table)).map_err(|error| error.to_string())?)
}

fn detail(param: &Param, value: &str) -> Option<(String, String)> {
    let value = RawValue::from_string(value.to_owned()).unwrap();
    param.check(&value).err().map(|error| (error.pointer, error.detail))
}

#[test]
fn values_are_held_to_type_and_bounds() {
    let month = param("name = 'month'\ntype = 'integer'\nminimum = 1\nmaximum = 12\ndefault = 7").unwrap();
    for good in ["1", "12"] {
        assert_eq!(detail(&month, good), None, "{good}");
    }
    for bad in ["0", "13", "1.0", "1e0", "\"1\"", "null", "99999999999999999999", "[1]", "{}"] {
        assert!(detail(&month, bad).is_some(), "{bad}");
    }
    let names =
        param("name = 'n'\ntype = 'text[]'\nmin_items = 1\nmax_items = 2\nmax_length = 3\npattern = '^[A-Z]+$'")
            .unwrap();
    assert_eq!(detail(&names, "[\"AB\",\"ABC\"]"), None);
    for (bad, pointer) in [
        ("[]", "/n"),
        ("[\"A\",\"B\",\"C\"]", "/n"),
        ("[\"A\",\"ABCD\"]", "/n/1"),
        ("[\"a\"]", "/n/0"),
        ("[null]", "/n/0"),
        ("\"A\"", "/n"),
    ] {
        assert_eq!(detail(&names, bad).unwrap().0, pointer, "{bad}");
    }
    let amount = param("name = 'x'\ntype = 'numeric(10,2)'\nminimum = 0.5").unwrap();
    assert_eq!(detail(&amount, "12345678.12"), None);
    assert!(detail(&amount, "0.4").is_some() && detail(&amount, "-1e400").is_some());
    let least = param("name = 'x'\ntype = 'numeric'\nmaximum = 100\nvalues = [0.1, 100]").unwrap();
    assert!(detail(&least, "100.0").is_none() && detail(&least, "1e-1").is_none());
    assert!(detail(&least, "100.000000000000001").is_some() && detail(&least, "0.1000000000000000055").is_some());
    let case = param("name = 'x'\ntype = 'text'\npattern = '(?i)^\\p{L}a$'").unwrap();
    assert!(detail(&case, "\"üA\"").is_none() && detail(&case, "\"1a\"").is_some());
    let urn = param("name = 'x'\ntype = 'uuid'").unwrap();
    assert!(detail(&urn, "\"urn:uuid:0190f3a0-0000-7000-8000-000000000000\"").is_some());
    assert!(detail(&param("name = 'x'\ntype = 'float(8)'\nminimum = 0").unwrap(), "1.5").is_none());
    let day = param("name = 'd'\ntype = 'date'").unwrap();
    assert_eq!(detail(&day, "\"2026-02-28\""), None);
    for bad in ["\"2026-02-30\"", "\"tomorrow\"", "\"28.2.2026\"", "20260228", "\"01-02-03\"", "\"+2026-1-01\""] {
        assert!(detail(&day, bad).is_some(), "{bad}");
    }
    let id = param("name = 'i'\ntype = 'uuid'").unwrap();
    assert!(detail(&id, "\"0190f3a0-0000-7000-8000-000000000000\"").is_none() && detail(&id, "\"x\"").is_some());
    let choice = param("name = 'c'\ntype = 'text'\nvalues = ['a', 'b']\nnullable = true").unwrap();
    assert!(detail(&choice, "\"a\"").is_none() && detail(&choice, "null").is_none());
    assert!(detail(&choice, "\"c\"").unwrap().1.contains("one of \"a\", \"b\""));
    assert!(detail(&choice, "\"a\\u0000\"").is_some());
}

#[test]
fn a_number_that_the_type_cannot_hold_is_refused() {
    for (type_name, good, bad) in [
        ("numeric(10,2)", "99999999.994", "99999999.995"),
        ("numeric(10,2)", "-99999999.994", "-99999999.995"),
        ("decimal (3, 3)", "0.9994", "0.9995"),
        ("dec(2)", "99.4999", "99.5"),
        ("NUMERIC(1)", "-0.5e1", "1e1"),
        ("pg_catalog.numeric(4,1)", "1e-400", "1e400"),
    ] {
        let param = param(&format!("name = 'x'\ntype = '{type_name}'")).unwrap();
        assert_eq!(detail(&param, good), None, "{type_name} {good}");
        assert!(detail(&param, bad).unwrap().1.contains("before the point"), "{type_name} {bad}");
    }
    // What not every server has, and what has no such modifier.
    for open in ["numeric", "numeric(2,-3)", "numeric(2,5)", "numeric(0)", "float(8)", "double precision"] {
        assert!(Capacity::of(open).is_none(), "{open}");
    }
    let items = param("name = 'x'\ntype = 'numeric(3,1)[]'").unwrap();
    assert_eq!(detail(&items, "[1, 99.94, 99.95]").unwrap().0, "/x/2");
    assert!(param("name = 'x'\ntype = 'numeric(3,1)'\ndefault = 100").unwrap_err().contains("before the point"));
}

#[test]
fn what_is_compared_is_what_the_type_keeps() {
    let amount = param("name = 'x'\ntype = 'numeric(5,1)'\nminimum = 0.1\nmaximum = 9.9\ndefault = 9.90").unwrap();
    assert!(detail(&amount, "9.94").is_none() && detail(&amount, "0.05").is_none());
    assert!(
        detail(&amount, "9.96").is_some() && detail(&amount, "9.95").is_some() && detail(&amount, "0.04").is_some()
    );
    let choice = param("name = 'x'\ntype = 'numeric(5,1)[]'\nvalues = [1, 2.5]").unwrap();
    assert_eq!(detail(&choice, "[1.04, 2.45]"), None);
    assert_eq!(detail(&choice, "[1, 2.55]").unwrap().0, "/x/1");
    for (type_name, short, long) in [
        ("varchar(2)", "\"ab\"", "\"abc\""),
        ("character varying (2)", "\"ab\"", "\"abc\""),
        ("national char(2)", "\"ab\"", "\"ab \""),
        ("char", "\"a\"", "\"aa\""),
        ("bit(2)", "\"10\"", "\"1\""),
        ("bit varying(2)", "\"10\"", "\"101\""),
    ] {
        let matched = param(&format!("name = 'x'\ntype = '{type_name}'\npattern = '.'")).unwrap();
        assert_eq!(detail(&matched, short), None, "{type_name}");
        assert!(detail(&matched, long).unwrap().1.contains("characters"), "{type_name}");
        let cut = param(&format!("name = 'x'\ntype = '{type_name}'")).unwrap();
        assert_eq!(detail(&cut, long), None, "{type_name}: as an explicit cast");
    }
    for (text, words) in [
        ("numeric(5,1)'\nmaximum = 9.96", "maximum: expected at most 1 digits behind the point"),
        ("numeric(5,1)'\nminimum = 1e4", "minimum: expected at most 4 digits before the point"),
        ("numeric(5,1)'\nvalues = [1, 1.25]", "values: expected at most 1 digits behind"),
        ("numeric(5,1)'\ndefault = 0.05", "default: expected at most 1 digits behind"),
        ("numeric(5,1)[]'\ndefault = [1, 0.05]", "default: expected at most 1 digits behind"),
        ("smallint'\nmaximum = 32768", "maximum: expected an integer from"),
        ("integer'\nminimum = 0.5", "minimum: expected an integer from"),
        ("varchar(2)'\ndefault = 'abc'", "default: expected at most 2 characters, as varchar(2) has"),
        ("varchar(2)[]'\ndefault = ['a', 'abc']", "default: expected at most 2 characters"),
        ("char(2)'\nvalues = ['a', 'abc']", "values: expected at most 2 characters"),
        ("bit(2)'\ndefault = '1'", "default: expected at least 2 characters"),
        ("varchar(2)'\nmax_length = 3", "max_length: expected at most 2"),
    ] {
        let error = param(&format!("name = 'x'\ntype = '{text}")).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn limits_have_all_of_their_digits() {
    let text = "name = 'x'\ntype = 'numeric'\nminimum = -99999999999999999999.5\nmaximum = 12345678901234567.891\n\
                default = 0.10\nvalues = [0.10, 12345678901234567.891, 12345678901234567.8911]";
    let limit = param(&text.replace(", 12345678901234567.8911]", "]")).unwrap();
    assert!(detail(&limit, "12345678901234567.891").is_none());
    assert!(detail(&limit, "12345678901234567.8911").unwrap().1.ends_with("or less"));
    assert!(param(text).unwrap_err().contains("expected 12345678901234567.891 or less"));
    let shown = crate::statements::schema::schema(std::slice::from_ref(&limit));
    for digits in [
        "\"maximum\":12345678901234567.891",
        "\"minimum\":-99999999999999999999.5",
        "\"default\":0.10",
        "\"enum\":[0.10,12345678901234567.891]",
    ] {
        assert!(shown.get().contains(digits), "{digits}: {shown}");
    }
    let large = param("name = 'x'\ntype = 'numeric'\nmaximum = 99999999999999999999\nminimum = 0x10").unwrap();
    assert!(detail(&large, "99999999999999999999").is_none() && detail(&large, "1e20").is_some());
    assert!(detail(&large, "15").unwrap().1.contains("16 or more"));
    for none in ["inf", "nan", "'a'"] {
        let error = param(&format!("name = 'x'\ntype = 'numeric'\nmaximum = {none}")).unwrap_err();
        assert!(error.contains("maximum: expected a number"), "{none}: {error}");
    }
}

#[test]
fn what_a_header_gets_wrong_is_said() {
    for (text, words) in [
        ("name = '1x'\ntype = 'int'", "begins with no digit"),
        ("name = 'x'\ntype = 'int; drop'", "type: expected"),
        ("name = 'x'\ntype = 'int'\nmax_length = 3", "max_length doesn't go with"),
        ("name = 'x'\ntype = 'text'\nminimum = 3", "minimum doesn't go with"),
        ("name = 'x'\ntype = 'int'\ndefault = 'a'", "default: expected an integer"),
        ("name = 'x'\ntype = 'int'\nvalues = [1, 'a']", "values: \"a\": expected an integer"),
        ("name = 'x'\ntype = 'text'\npattern = '('", "pattern: expected a regular expression"),
        ("name = 'x'\ntype = 'date'\ndefault = 2026-01-01", "in quotes"),
        ("name = 'x'\ntype = 'jsonb'\nnullable = true", "nullable doesn't go with"),
    ] {
        let error = param(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn a_value_keeps_its_literal_and_names_its_type() {
    let id = param("name = 'id'\ntype = 'numeric'").unwrap();
    let given = RawValue::from_string("1.10".to_owned()).unwrap();
    assert_eq!(id.value(Some(&given)).unwrap().get(), r#"{"type":"numeric","value":1.10}"#);
    assert!(id.value(None).is_err());
    let note = param("name = 'note'\ntype = 'text'\nnullable = true").unwrap();
    assert_eq!(note.value(None).unwrap().get(), r#"{"type":"text","value":null}"#);
}
