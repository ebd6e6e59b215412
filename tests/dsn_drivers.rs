//! Connection strings as other drivers than libpq write them: each read for what it means there, each change by name.

use slowlane::dsn::{self, Code, Reading, adonet, foreign};
use slowlane::pq;

fn read(text: &str) -> Reading {
    dsn::read(text, pq::parameters()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// What it means to libpq, as `keyword=value` pairs.
fn meaning(text: &str) -> String {
    read(text).dsn.conninfo().expose().to_owned()
}

#[test]
fn urls_mean_what_their_drivers_take_them_for() {
    let plain = "dbname='d' host='h' password='p' user='u'";
    for (text, family, expected) in [
        // pgx and its pool.
        ("postgres://u:p@h/d?pool_max_conns=10&pool_min_conns=1&pool_max_conn_lifetime=1h30m", "pgx", plain),
        ("postgres://u:p@h/d?pool_max_conn_idle_time=5m&pool_health_check_period=1m", "pgx", plain),
        ("postgres://u:p@h/d?pool_max_conn_lifetime_jitter=5m&pool_min_idle_conns=2", "pgx", plain),
        ("postgres://u:p@h/d?default_query_exec_mode=simple_protocol", "pgx", plain),
        ("postgres://u:p@h/d?statement_cache_capacity=0&description_cache_capacity=512", "pgx", plain),
        ("postgres://u:p@h/d?min_read_buffer_size=8192&x-migrations-table=m", "pgx", plain),
        ("pgx5://u:p@h/d", "pgx", plain),
        (
            "postgres://u:p@h1:1,h2:2/d?target_session_attrs=read-write&pool_max_conns=4",
            "pgx",
            "dbname='d' host='h1,h2' password='p' port='1,2' target_session_attrs='read-write' user='u'",
        ),
        (
            "user=u password=p host=h dbname=d sslmode=require pool_max_conns=10",
            "pgx",
            "dbname='d' host='h' password='p' sslmode='require' user='u'",
        ),
        // lib/pq asks for TLS where nothing is said.
        (
            "postgres://u:p@h/d?binary_parameters=yes",
            "lib/pq",
            "dbname='d' host='h' password='p' sslmode='require' user='u'",
        ),
        (
            "postgres://u:p@h/d?sslmode=disable&disable_prepared_binary_result=yes&tz=UTC",
            "lib/pq",
            "dbname='d' host='h' options='-c TimeZone=UTC' password='p' sslmode='disable' user='u'",
        ),
        (
            "postgres://u:p@h/d?sslrootcert=system&binary_parameters=no",
            "lib/pq",
            "dbname='d' host='h' password='p' sslmode='verify-full' sslrootcert='system' user='u'",
        ),
        // Rails.
        ("postgresql://u:p@h/d?pool=5&prepared_statements=false&checkout_timeout=5", "Rails", plain),
        ("postgis://u:p@h/d?reaping_frequency=10&statement_limit=100&advisory_locks=false", "Rails", plain),
        (
            "postgres://u:p@h/d?pool=5&encoding=unicode&schema_search_path=a,b&min_messages=warning",
            "Rails",
            "client_encoding='UTF8' dbname='d' host='h' options='-c search_path=a,b -c client_min_messages=warning' \
             password='p' user='u'",
        ),
        (
            "postgres://u:p@h/d?variables[statement_timeout]=5000&pool=5",
            "Rails",
            "dbname='d' host='h' options='-c statement_timeout=5000' password='p' user='u'",
        ),
        // sqlx.
        ("postgres://u:p@h/d?statement-cache-capacity=100", "sqlx", plain),
        (
            "postgres://u:p@h/d?options[search_path]=x&options[statement_timeout]=5s",
            "sqlx",
            "dbname='d' host='h' options='-c search_path=x -c statement_timeout=5s' password='p' user='u'",
        ),
        (
            "postgres://u:p@h/d?options%5Bsearch_path%5D=x",
            "sqlx",
            "dbname='d' host='h' options='-c search_path=x' password='p' user='u'",
        ),
        (
            "postgres://u:p@h/d?ssl-mode=REQUIRE&ssl-root-cert=/ca.pem&ssl-cert=/c.pem&ssl-key=/k.pem&application-name=a",
            "sqlx",
            "application_name='a' dbname='d' host='h' password='p' sslcert='/c.pem' sslkey='/k.pem' sslmode='require' \
             sslrootcert='/ca.pem' user='u'",
        ),
        // tokio-postgres: seconds where libpq has milliseconds.
        (
            "postgres://u:p@h/d?keepalives_retries=3&tcp_user_timeout=20",
            "tokio-postgres",
            "dbname='d' host='h' keepalives_count='3' password='p' tcp_user_timeout='20000' user='u'",
        ),
        // Doctrine, as Symfony sets it up.
        (
            "postgresql://u:p@h:5432/d?serverVersion=16&charset=utf8",
            "Doctrine",
            "client_encoding='UTF8' dbname='d' host='h' password='p' port='5432' user='u'",
        ),
        ("pdo-pgsql://u:p@h/d", "Doctrine", plain),
        ("pdo_pgsql://u:p@h/d?serverVersion=16.4%20(Debian)", "Doctrine", plain),
        ("pgsql://u:p@h/d?serverVersion=16", "Doctrine", plain),
        // What hosts of databases hand out.
        (
            "postgres://u:p@h/d?sslmode=require&supa=base-pooler.x",
            "libpq",
            "dbname='d' host='h' password='p' sslmode='require' user='u'",
        ),
        ("postgres://u:p@h/d?pgbouncer=true&connection_limit=1&pool_timeout=0", "Prisma", plain),
        (
            "postgres://u:p@h/d?sslmode=require&options=endpoint%3Dep-x-1",
            "libpq",
            "dbname='d' host='h' options='endpoint=ep-x-1' password='p' sslmode='require' user='u'",
        ),
        // Ecto: a timeout of its is that of a statement, in milliseconds.
        ("ecto://u:p@h/d?pool_size=10&timeout=15000&queue_target=50", "Ecto", plain),
        ("ecto://u:p@h/d?ssl=true", "Ecto", "dbname='d' host='h' password='p' sslmode='require' user='u'"),
        // Django.
        (
            "postgis://u:p@h/d?conn_max_age=600&CONN_HEALTH_CHECKS=true&DISABLE_SERVER_SIDE_CURSORS=true",
            "Django",
            plain,
        ),
    ] {
        let reading = read(text);
        assert_eq!((reading.driver.family(), meaning(text).as_str()), (family, expected), "{text}");
        // Nothing is done in silence.
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let told: Vec<&str> = reading.changes.iter().map(|change| change.text.as_str()).collect();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let name = pair.split('=').next().unwrap().replace("%5B", "[").replace("%5D", "]");
            let as_it_is = pq::parameters().iter().any(|known| known.keyword == name);
            assert!(as_it_is || told.iter().any(|text| text.contains(&name)), "{name} of {text}: {told:?}");
        }
    }
}

#[test]
fn whom_a_driver_trusts_is_whom_slowlane_trusts() {
    for (text, mode, roots) in [
        // These trust the system where no file is named, and libpq wouldn't.
        ("postgres://h/d?sslmode=verify-full&pool_max_conns=4", "verify-full", Some("system")),
        ("postgres://h/d?sslmode=verify-ca&pool_max_conns=4", "verify-full", Some("system")),
        ("postgres://h/d?sslmode=verify-ca&sslrootcert=/ca.pem&pool_max_conns=4", "verify-ca", Some("/ca.pem")),
        ("postgres://h/d?sslmode=verify-full&statement-cache-capacity=1", "verify-full", Some("system")),
        ("postgres://h/d?sslmode=verify-full&binary_parameters=yes", "verify-full", None),
        ("postgres://h/d?sslmode=prefer&pool_max_conns=4", "prefer", None),
        ("Host=h;Username=u;SSL Mode=Require", "require", None),
        ("Host=h;Username=u;SSL Mode=Require;Trust Server Certificate=true", "require", None),
        ("Host=h;Username=u;SSL Mode=Require;Trust Server Certificate=false", "verify-full", Some("system")),
        ("Host=h;Username=u;SSL Mode=VerifyFull", "verify-full", Some("system")),
        ("Host=h;Username=u;SslMode=verify-full;Root Certificate=/ca.pem", "verify-full", Some("/ca.pem")),
        ("Host=h;Username=u;SSL Mode=VerifyCA;Root Certificate=/ca.pem", "verify-ca", Some("/ca.pem")),
        ("Host=h;Username=u;SSL Mode=VerifyCA", "verify-full", Some("system")),
        ("Host=h;Username=u;SSL Mode=Prefer", "prefer", None),
        ("Host=h;Username=u;SSL Mode=Disable", "disable", None),
    ] {
        let dsn = read(text).dsn;
        assert_eq!((dsn.get("sslmode"), dsn.get("sslrootcert")), (Some(mode), roots), "{text}");
    }
    let told = |text: &str| read(text).changes.iter().map(|change| change.text.clone()).collect::<Vec<_>>().join("; ");
    assert!(told("Host=h;Username=u;SSL Mode=Require").contains("the certificate isn't checked"));
    assert!(told("postgres://h/d?binary_parameters=yes").contains("lib/pq asks for it where nothing is said"));
    assert!(told("postgres://h/d?sslmode=verify-full&pool_max_conns=4").contains("sslrootcert=system is added"));
}

#[test]
fn npgsql_s_pairs_are_read_by_its_rules() {
    for (text, expected) in [
        ("Host=h;Port=5432;Database=d;Username=u;Password=p", "dbname='d' host='h' password='p' port='5432' user='u'"),
        (
            "Server=h;Database=d;User Id=u;Password=\"a;b=\"\"c\"\"\"",
            "dbname='d' host='h' password='a;b=\"c\"' user='u'",
        ),
        ("host=h;username=u;password='it''s';", "host='h' password='it\\'s' user='u'"),
        (
            "Host=h1:5432,h2:5433;Username=u;Target Session Attributes=prefer-standby;Load Balance Hosts=true",
            "host='h1,h2' load_balance_hosts='random' port='5432,5433' target_session_attrs='prefer-standby' user='u'",
        ),
        ("Host=/var/run/postgresql;Username=u", "host='/var/run/postgresql' user='u'"),
        (
            "Host=h;Username=u;Timeout=7;Command Timeout=30;Search Path=a,b;Timezone=UTC;Application Name=my app",
            "application_name='my app' connect_timeout='7' host='h' \
             options='-c statement_timeout=30000 -c search_path=a,b -c TimeZone=UTC' user='u'",
        ),
        (
            "Host=h;Username=u;Options=-c jit=off;Search Path=a",
            "host='h' options='-c jit=off -c search_path=a' user='u'",
        ),
        (
            "Host=h;Username=u;Pooling=true;Minimum Pool Size=1;MaxPoolSize=50;Connection Idle Lifetime=60;Include Error Detail=true;\
             Keepalive=30;Enlist=false;Max Auto Prepare=10;No Reset On Close=true;Tcp Keepalive=true;Tcp Keepalive Time=1500",
            "host='h' keepalives='1' keepalives_idle='2' user='u'",
        ),
    ] {
        let reading = read(text);
        assert_eq!((reading.driver.family(), meaning(text).as_str()), ("ADO.NET", expected), "{text}");
    }
}

#[test]
fn a_socket_in_the_place_of_the_database_is_read_as_one() {
    for (text, host, database) in [
        ("postgres://u:p@/cloudsql/proj:region:inst/db", "/cloudsql/proj:region:inst", Some("db")),
        (
            "postgresql://u:p@/cloudsql/proj%3Aregion%3Ainst/db?sslmode=disable",
            "/cloudsql/proj:region:inst",
            Some("db"),
        ),
        (
            "postgresql+asyncpg://u:p@/cloudsql/example.com:proj:region:inst/db",
            "/cloudsql/example.com:proj:region:inst",
            Some("db"),
        ),
        ("postgres:///var/run/postgresql/db", "/var/run/postgresql", Some("db")),
        ("postgres://u@/cloudsql/p:r:i", "/cloudsql/p:r:i", None),
        ("postgres://u@/tmp/db", "/tmp", Some("db")),
    ] {
        let reading = read(text);
        assert_eq!((reading.dsn.get("host"), reading.dsn.get("dbname")), (Some(host), database), "{text}");
        assert!(reading.changes.iter().any(|change| change.name == "host"), "{text}: {:?}", reading.changes);
    }
    for text in [
        "postgres://u:hunter2@/opt/sockets/db",
        "postgres://u:hunter2@localhost/cloudsql/p:r:i/db",
        "postgres://u:hunter2@h//db",
        "host=h password=hunter2 dbname=/cloudsql/p:r:i/db",
    ] {
        let error = dsn::read(text, pq::parameters()).unwrap_err();
        assert_eq!(error.code, Code::Malformed, "{text}: {error}");
        assert!(error.message.contains("/DATABASE?host=/FOLDER") && !error.to_string().contains("hunter2"), "{error}");
        assert!(!error.to_string().contains("sockets") && !error.to_string().contains("cloudsql"), "{error}");
    }
}

#[test]
fn what_is_refused_is_named_where_its_name_is_known() {
    for (text, code, words) in [
        (
            "postgresql://u:hunter2@h/db?application_name=a%20b&fallback_application_name=my app",
            "malformed",
            "the value of fallback_application_name has a blank",
        ),
        ("postgresql://h/d?sslmode", "malformed", "sslmode behind the `?` has no value"),
        ("postgresql://h/d?hunter2", "malformed", "a parameter behind the `?` has no value"),
        ("postgresql://h/d?hunter2=a b", "malformed", "a blank in a URL is written %20"),
        ("postgresql://h/d?connect_timeout=soon", "malformed", "connect_timeout is a whole number"),
        ("postgresql+asyncpg://h/d?command_timeout=soon", "malformed", "command_timeout: expected a number of seconds"),
        ("postgresql+pg8000://h/d?tcp_keepalive=perhaps", "malformed", "tcp_keepalive: expected true or false"),
        ("jdbc:postgresql://h/d?targetServerType=x", "malformed", "targetServerType: expected any, primary"),
        ("postgresql://h/d?keepAlive=x&max=1", "malformed", "keepAlive: expected true or false"),
        ("postgresql://h/d?channel_binding=maybe", "malformed", "channel_binding is one of"),
        ("postgresql+asyncpg://h/d?server_settings=x", "malformed", "server_settings: expected a JSON object"),
        ("postgresql+asyncpg://h/d?server_settings=nope%3D1", "unknown_parameter", "server_settings: it has a setting"),
        ("postgresql+pg8000://h/d?ssl_context=x", "unknown_parameter", "ssl_context can't be used here"),
        ("postgresql://h/d?user=u&user=v", "duplicate_parameter", "user is given twice"),
        (
            "postgresql://h/d?options=-c%20jit%3Doff&options=-c%20geqo%3Doff",
            "duplicate_parameter",
            "options is given twice",
        ),
        ("postgresql://h/d?ssl=true&ssl=false", "duplicate_parameter", "ssl is given twice"),
        ("postgresql://h/d?sslmode=require&pool_max_conns=4&nope=1", "unknown_parameter", "the 3rd of its parameters"),
        ("host=h nope=1", "unknown_parameter", "the 2nd of its parameters"),
        ("host=h application_name=my app", "malformed", "a word behind the value of application_name is not followed"),
        ("host=h password='a'b", "malformed", "password: a quoted value"),
        ("host=h nope=1 b", "malformed", "a word is not followed"),
        ("postgres://h/d?krbspn=a&pool_max_conns=1", "unknown_parameter", "krbspn can't be used here: "),
        ("postgres://h/d?sslinline=true", "unknown_parameter", "sslinline can't be used here: "),
        ("postgres://h/d?pool=5&variables=x", "unknown_parameter", "variables can't be used here: "),
        ("postgres://h/d?options[hunter2]=x", "unknown_parameter", "the 1st of its parameters"),
        (
            "Host=h;Username=u;Check Certificate Revocation=true",
            "unknown_parameter",
            "Check Certificate Revocation can't",
        ),
        ("Host=h;Username=u;Server Compatibility Mode=Redshift", "unknown_parameter", "Redshift is another database"),
        ("Host=h;Username=u;SSL Mode=hunter2", "malformed", "SSL Mode: expected Disable, Allow"),
        ("Host=h;Username=u;Timeout=hunter2", "malformed", "Timeout: expected a time"),
        ("Host=h;Username=u;Password=a;hunter2=b", "unknown_parameter", "the 4th of its pairs"),
        ("Host=h;Username=u;Password=hun;ter2", "malformed", "a pair has no `=`"),
        ("Host=h;Username=u;Password=\"hunter2", "unbalanced_quote", "Password: a quote"),
        ("Host=h;Host=g;Username=u", "duplicate_parameter", "host is given twice"),
        ("Data Source=h;Initial Catalog=d;User ID=u;Password=hunter2", "foreign_syntax", "another syntax"),
        ("pgsql:host=h;dbname=d;user=u;password=hunter2", "foreign_syntax", "PDO"),
        ("host=h;dbname=d;user=u;password=hunter2", "foreign_syntax", "another syntax"),
    ] {
        let error = dsn::read(text, pq::parameters()).unwrap_err();
        assert_eq!(error.code.as_str(), code, "{text}: {error}");
        assert!(error.message.contains(words), "{text}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{text}: {error}");
    }
    // What can't stay is left out of what would be right, and nothing else is.
    let error = dsn::read("postgres://u:p@h/d?krbspn=a&sslmode=require", pq::parameters()).unwrap_err();
    assert_eq!(error.right, "postgresql://u:***@h/d?sslmode=require");
}

#[test]
fn every_name_of_the_tables_is_read_or_refused_by_its_name() {
    for known in foreign::TABLE {
        for value in ["", "true", "1", "/x/.s.PGSQL.1", "any", "disable", "a%3Db"] {
            let text = format!("postgresql://h/d?{}={value}", known.name);
            match dsn::read(&text, pq::parameters()) {
                Ok(reading) => {
                    let named = reading.changes.iter().any(|change| change.text.contains(known.name));
                    assert!(named || known.name == "ssl", "{text}: {:?}", reading.changes);
                }
                Err(error) => assert!(error.message.contains(known.name), "{text}: {error}"),
            }
        }
    }
    for known in adonet::TABLE {
        for value in ["true", "1", "any", "Disable"] {
            let text = format!("Host=h;Username=u;{}={value}", known.name);
            if let Err(error) = dsn::read(&text, pq::parameters()) {
                let again = ["Host", "Username"].contains(&known.name);
                assert!(again || error.message.contains(known.name), "{text}: {error}");
            }
        }
    }
}

#[test]
fn words_hosts_and_times_mean_what_their_drivers_take_them_for() {
    let plain = "dbname='d' host='h' password='p' user='u'";
    for (text, expected) in [
        // Npgsql has no case.
        ("Host=h;Username=u;Channel Binding=Require", "channel_binding='require' host='h' user='u'"),
        (
            "Host=h;Username=u;SSL Mode=Require;SSL Negotiation=Direct",
            "host='h' sslmode='require' sslnegotiation='direct' user='u'",
        ),
        ("Host=h;Username=u;Require Auth=ScramSHA256", "host='h' require_auth='scram-sha-256' user='u'"),
        ("Host=h;Username=u;Require Auth=!MD5,!Password", "host='h' require_auth='!md5,!password' user='u'"),
        ("Host=h1,h2:5433;Port=6000;Username=u", "host='h1,h2' port='6000,5433' user='u'"),
        ("Port=6000;Username=u;Host=h1,h2:5433", "host='h1,h2' port='6000,5433' user='u'"),
        ("Host=h1,h2:5433;Username=u", "host='h1,h2' port=',5433' user='u'"),
        ("Host=h1,h2;Port=6000;Username=u", "host='h1,h2' port='6000' user='u'"),
        ("Host=h", "host='h'"),
        // Milliseconds.
        ("postgres://u:p@h/d?pool=5&timeout=5000", plain),
        ("ecto://u:p@h/d?timeout=15000", plain),
        ("ecto://u:p@h/d?connect_timeout=5000", "connect_timeout='5' dbname='d' host='h' password='p' user='u'"),
        ("postgres://u:p@h/d?timeout=60", "connect_timeout='60' dbname='d' host='h' password='p' user='u'"),
        ("postgres://u:p@h/d?dial_timeout=1500ms", "connect_timeout='2' dbname='d' host='h' password='p' user='u'"),
        // Ecto.
        ("ecto://u:p@localhost/d?socket_dir=/tmp", "dbname='d' host='/tmp' password='p' user='u'"),
        ("ecto://u:p@localhost:5433/d?hostname=h", "dbname='d' host='h' password='p' port='5433' user='u'"),
        ("ecto://u:p@x/d?socket_dir=/tmp&hostname=h", "dbname='d' host='/tmp' password='p' user='u'"),
        ("ecto://u:p@x/d?hostname=h&socket_dir=/tmp", "dbname='d' host='/tmp' password='p' user='u'"),
        // pgjdbc.
        (
            "jdbc:postgresql://x:1/y?user=u&password=p&PGHOST=h&PGPORT=2&PGDBNAME=d&maxSendBufferSize=8192",
            "dbname='d' host='h' password='p' port='2' user='u'",
        ),
        // Settings of an application's own.
        (
            "postgres://u:p@h/d?options[app.tenant]=7",
            "dbname='d' host='h' options='-c app.tenant=7' password='p' user='u'",
        ),
        ("postgres://u:p@h/d?variables[app.x]=7", "dbname='d' host='h' options='-c app.x=7' password='p' user='u'"),
        (
            "postgresql+asyncpg://u:p@h/d?server_settings={\"app.tenant\":\"7\"}",
            "dbname='d' host='h' options='-c app.tenant=7' password='p' user='u'",
        ),
        // SQLAlchemy, psycopg_pool, pg, Django, gorm, go-pg.
        (
            "postgresql+psycopg2://u:p@h/d?executemany_mode=values_only&use_native_hstore=false&pool_use_lifo=true",
            plain,
        ),
        ("postgresql+psycopg2://u:p@h/d?isolation_level=AUTOCOMMIT&poolclass=NullPool", plain),
        (
            "postgresql+psycopg2://u:p@h/d?isolation_level=REPEATABLE_READ",
            "dbname='d' host='h' options='-c default_transaction_isolation=repeatable\\\\ read' password='p' user='u'",
        ),
        ("postgres://u:p@h/d?min_size=1&max_size=4", plain),
        ("postgres://u:p@h/d?enableChannelBinding=true&maxUses=100&maxLifetimeSeconds=60", plain),
        ("timescale://u:p@h/d?MAX_CONNS=20", plain),
        ("timescalegis://u:p@h/d?assume_role=r", "dbname='d' host='h' options='-c role=r' password='p' user='u'"),
        ("postgres://u:p@h/d?prefer_simple_protocol=true&read_timeout=5s&write_timeout=5s", plain),
        ("postgres://u:p@h/d?acquire_timeout=5&reconnect=true", plain),
        ("postgres://u:p@h/d?requiressl=1", "dbname='d' host='h' password='p' sslmode='require' user='u'"),
        (
            "postgres://u:p@h/d?require_auth=scram-sha-256,md5&ssl_min_protocol_version=tlsv1.2",
            "dbname='d' host='h' password='p' require_auth='scram-sha-256,md5' ssl_min_protocol_version='tlsv1.2' user='u'",
        ),
    ] {
        assert_eq!(meaning(text), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_told_of_the_parameter_that_it_is_about() {
    for (text, words) in [
        ("Host=h;Username=u;Require Auth=bogus", "Require Auth: require_auth is a list of"),
        ("postgres://u:p@h/d?require_auth=bogus", "require_auth is a list of"),
        ("postgres://u:p@h/d?require_auth=!md5,password", "require_auth is a list of"),
        ("postgres://u:p@h/d?require_auth=md5,md5", "require_auth is a list of"),
        ("postgres://u:p@h/d?ssl_min_protocol_version=TLSv9", "ssl_min_protocol_version is one of"),
        ("postgres://u:p@h/d?ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2", "is newer than"),
        ("postgres://u:p@h/d?gssdelegation=yes", "gssdelegation is one of 0, 1"),
        ("postgres://u:p@h/d?sslsni=on", "sslsni is one of 0, 1"),
        ("postgres://u:p@h/d?sslcompression=x", "sslcompression is one of 0, 1"),
        ("postgres://u:p@h/d?timeout=5000", "timeout: expected at most 600 seconds"),
        ("postgres://u:p@h/d?ssl=bogus", "malformed: ssl is one of true, false, disable"),
        ("postgres://u:p@h/d?ssl={%22rejectUnauthorized%22:false}", "malformed: ssl is one of true, false, disable"),
        ("postgres://u:p@h/d?ssl={\"rejectUnauthorized\":false}", "malformed: ssl is one of true, false, disable"),
        ("jdbc:postgresql://h/d?sslAlias=x", "sslAlias can't be used here"),
        ("postgres://u:p@h/d?pool_max_conns=1&servicefile=/x", "servicefile can't be used here"),
    ] {
        let error = dsn::read(text, pq::parameters()).unwrap_err().to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn wrappers_and_other_syntaxes_are_named_with_what_is_right() {
    for (text, words, right) in [
        ("jdbc:aws-wrapper:postgresql://h/d?user=u", "the AWS JDBC driver", "postgresql://u@h/d"),
        ("jdbc:otel:postgresql://h/d?user=u&password=s3cr3tX", "a wrapper, OpenTelemetry", "postgresql://u:***@h/d"),
        ("jdbc:p6spy:postgresql://h/d", "a wrapper, P6Spy", "postgresql://h/d"),
        ("jdbc:log4jdbc:postgresql://h/d", "a wrapper, log4jdbc", "postgresql://h/d"),
        ("jdbc:tc:postgresql:16:///d", "a wrapper, Testcontainers", "postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
        ("r2dbc:postgresql://u:s3cr3tX@h/d", "R2DBC", "postgresql://u:***@h/d"),
        ("r2dbcs:postgresql://u:s3cr3tX@h/d", "R2DBC", "postgresql://u:***@h/d?sslmode=verify-full"),
        ("r2dbc:pool:postgresql://u:s3cr3tX@h/d", "R2DBC", "postgresql://u:***@h/d"),
        (
            "Driver={PostgreSQL Unicode};Server=h;Port=5433;Database=d;Uid=u;Pwd=s3cr3tX",
            "written for ODBC",
            "postgresql://u:***@h:5433/d",
        ),
        ("Driver={PostgreSQL Unicode};Server=h;Uid=u;Pwd={s3cr3tX@}", "written for ODBC", "postgresql://u:***@h"),
        (
            "Provider=PostgreSQL OLE DB Provider;Data Source=h;location=d;User ID=u;password=s3cr3tX",
            "written for OLE DB",
            "postgresql://u:***@h/d",
        ),
    ] {
        let error = dsn::read(text, pq::parameters()).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains("s3cr3tX"), "{text}: {error}");
        assert!(error.ends_with(&format!("right would be {right}")), "{text}: {error}");
    }
}
