-- kind = "query"
-- description = "Flights that arrived late in a month, the latest first; of one airline, or of all"
-- timeout = "30s"
-- row_limit = 1000
--
-- [[params]]
-- name = "month"
-- type = "integer"
-- description = "The month of 2013"
-- minimum = 1
-- maximum = 12
--
-- [[params]]
-- name = "minutes"
-- type = "integer"
-- description = "Later than this by so many minutes"
-- default = 120
-- minimum = 0
--
-- [[params]]
-- name = "carrier"
-- type = "text"
-- description = "The airline's code, such as UA"
-- pattern = "^[0-9A-Z]{2}$"
-- nullable = true

SELECT f.time_hour::date AS day, a.name AS airline, f.flight, f.origin, f.dest, f.arr_delay
  FROM flights f
  JOIN airlines a USING (carrier)
 WHERE f.month = $1 AND f.arr_delay > $2 AND ($3 IS NULL OR f.carrier = $3)
 ORDER BY f.arr_delay DESC
