#!/bin/sh
# Run once by the postgres image, in a new data folder: the roles and databases that slowlane works with.
set -eu
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    -v owner="$SLOWLANE_OWNER_PASSWORD" -v queue="$SLOWLANE_QUEUE_PASSWORD" -v work="$SLOWLANE_WORK_PASSWORD" <<'SQL'
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
CREATE ROLE slowlane_owner LOGIN PASSWORD :'owner';
CREATE ROLE slowlane_queue LOGIN NOINHERIT PASSWORD :'queue' IN ROLE slowlane_owner;
CREATE ROLE slowlane_demo LOGIN PASSWORD :'work';
CREATE DATABASE slowlane OWNER slowlane_owner;
REVOKE ALL ON DATABASE slowlane FROM PUBLIC;
GRANT CONNECT ON DATABASE slowlane TO slowlane_queue;
CREATE DATABASE demo OWNER slowlane_demo;
SQL
