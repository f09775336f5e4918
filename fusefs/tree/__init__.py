"""Names: which files and directories the mount shows, under which inode, and for how long."""
