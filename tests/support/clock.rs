//! A database whose clock can be set, for whoever connects after it was made so.

use super::postgres::Database;

/// Has `clock_timestamp` and `now` of this database add what [`step`] says; nothing until then.
pub fn make_settable(database: &Database) {
    database.run(
        "CREATE TABLE public.clock_step (step interval NOT NULL);
         INSERT INTO public.clock_step VALUES ('0'); GRANT SELECT ON public.clock_step TO PUBLIC;
         SET allow_system_table_mods = on;
         UPDATE pg_proc SET proname = 'real_clock' WHERE oid = 'pg_catalog.clock_timestamp()'::regprocedure;
         UPDATE pg_proc SET proname = 'real_now' WHERE oid = 'pg_catalog.now()'::regprocedure;
         CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
             $$ SELECT pg_catalog.real_clock() + (SELECT step FROM public.clock_step) $$;
         CREATE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql STABLE AS
             $$ SELECT pg_catalog.real_now() + (SELECT step FROM public.clock_step) $$",
    );
}

/// Sets the clock so far off the right time, such as `1 hour` or `-1 hour`.
pub fn step(database: &Database, by: &str) {
    database.run(&format!("UPDATE public.clock_step SET step = '{by}'"));
}
