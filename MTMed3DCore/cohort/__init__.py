"""Whole cohorts: thousands of studies through one model, in this process or on a Dask cluster.

==================  =================================================================================================
``studies``         which studies a command names
``settings``        what is asked of every study, and how a study is known to be done already
``folder``          the output folder: its lock, a folder for each study, and the commit of one result
``outcome``         what became of one study, in values that go from process to process
``station``         one process at work: a model that is loaded once, and a few studies on their way through it
``local``           every study through one station
``cluster``         Dask clusters: on this machine, by a scheduler's address, through SLURM
``preload``         what a cluster's worker does before its first task
``remote``          every study through the stations of a cluster's workers
``run``             a run from its claim of the folder to its summary
``rows``            what the folder holds of each study, and the totals
``table``           ``summary.csv``
``overview``        ``overview.html``
``thumbnail``       one small picture of a study
==================  =================================================================================================

A result is a folder that appears by one rename, with the hashes of what it was made from inside. Whether a study is
done is asked of that folder alone; so a run can be killed at any moment, and a study whose worker was lost, or that two
workers did, is in the result once.
"""
