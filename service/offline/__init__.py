"""`heed predict`: answers each row of a file, without a server or with a running one."""
