-- One transaction, larger than the cache, so that the database file, its journal and its locks are all in
-- use in the middle of it.
PRAGMA cache_size = 50;
PRAGMA journal_mode = DELETE;
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, weight INTEGER);
CREATE INDEX item_by_weight ON item (weight);
INSERT INTO item SELECT value, hex(value * 7919), value * 2654435761 % 4294967296 FROM generate_series(1, 1000);
BEGIN IMMEDIATE;
WITH RECURSIVE number (i) AS (SELECT 1001 UNION ALL SELECT i + 1 FROM number WHERE i < 500000)
INSERT INTO item SELECT i, hex(i * 7919) || printf('%.*c', 60, 'x'), i * 2654435761 % 4294967296 FROM number;
DELETE FROM item WHERE id % 17 = 0;
COMMIT;
SELECT count(*), sum(weight), max(name), total(length(name)) FROM item;
PRAGMA integrity_check;
