-- kind = "execute"
-- description = "Computes the table delay_report anew for some airports: flights and delays by month"
-- timeout = "5m"
--
-- [[params]]
-- name = "origins"
-- type = "text[]"
-- description = "Airports in New York"
-- values = ["EWR", "JFK", "LGA"]
-- min_items = 1
-- max_items = 3
-- default = ["EWR", "JFK", "LGA"]

CREATE TABLE IF NOT EXISTS delay_report (
    origin    text NOT NULL,
    month     smallint NOT NULL,
    flights   bigint NOT NULL,
    cancelled bigint NOT NULL,
    delay     numeric(6, 1),
    PRIMARY KEY (origin, month)
);

DELETE FROM delay_report WHERE origin = ANY ($1);

INSERT INTO delay_report
SELECT origin, month, count(*), count(*) FILTER (WHERE dep_time IS NULL), avg(arr_delay)
  FROM flights
 WHERE origin = ANY ($1)
 GROUP BY origin, month;
