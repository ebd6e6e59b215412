#!/bin/sh
# Run once by the postgres image, in a new data folder: the roles and databases that slowlane works with.
set -eu
# psql reads the passwords from its environment: its arguments are in every process listing.
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\getenv owner SLOWLANE_OWNER_PASSWORD
\getenv queue SLOWLANE_QUEUE_PASSWORD
\getenv work SLOWLANE_WORK_PASSWORD
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
CREATE ROLE slowlane_owner LOGIN PASSWORD :'owner';
CREATE ROLE slowlane_queue LOGIN NOINHERIT PASSWORD :'queue' IN ROLE slowlane_owner;
GRANT pg_read_all_stats TO slowlane_queue;
CREATE ROLE slowlane_client NOLOGIN;
CREATE ROLE slowlane_demo LOGIN PASSWORD :'work';
CREATE DATABASE slowlane OWNER slowlane_owner;
REVOKE ALL ON DATABASE slowlane FROM PUBLIC;
GRANT CONNECT ON DATABASE slowlane TO slowlane_queue, slowlane_client;
CREATE DATABASE demo OWNER slowlane_demo;
SQL
