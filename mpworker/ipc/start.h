/* The start of a supervisor, and of its first nursery in the same moment.
 *
 * A nursery must be the supervisor's own child, for only a parent can reap. If the supervisor starts it, the second
 * interpreter begins when the first one is up; a fifth of the time to a first result. So the process that becomes the
 * supervisor starts the nursery before it becomes that:
 *
 *     client --vfork--> settles --vfork--> execs the nursery
 *                          '-------------> execs the supervisor, which is the nursery's parent from then on
 *
 * posix_spawn(3) cannot do that. As it does, both children run in the client's memory while the client's thread stands
 * still, however many others it has, with all signals blocked and no handler left; between vfork and exec are system calls
 * alone. What both shall have is settled by the first: a process group of its own (Ctrl-C in a terminal is for the client
 * alone), no terminal, nothing to read, three standard streams, and no other descriptor of the client's.
 */
#ifndef MPW_START_H
#define MPW_START_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define MPW_START_FD 3         /* either finds its socket here; */
#define MPW_START_NURSERY_FD 4 /* and the supervisor that to its nursery here */

typedef struct {
    const char *path;
    char *const *supervisor; /* arguments; that at `pid_at` has room for a number, the nursery's process id */
    size_t pid_at;
    char *const *nursery; /* arguments; NULL for no nursery */
    char *const *environment;
    int client_end;     /* the supervisor's socket to the client, */
    int supervisor_end; /* its socket to the nursery, */
    int nursery_end;    /* and the nursery's to it */
} mpw_start;

#define MPW_START_PID_CHARS 11 /* digits of an int, and the end */

static void mpw_start_write_pid(char *text, pid_t pid)
{
    char digits[MPW_START_PID_CHARS];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + pid % 10);
        pid /= 10;
    } while (pid);
    while (count)
        *text++ = digits[--count];
    *text = '\0';
}

static void mpw_start_close_from(unsigned first)
{
#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0U, 0U) == 0)
        return; /* Linux 5.9 */
#endif
    struct rlimit limit;
    rlim_t end = getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max < 1 << 20 ? limit.rlim_max : 1 << 20;
    for (rlim_t fd = first; fd < end; fd++)
        close((int)fd);
}

/* Signals as a program finds them that nobody has prepared anything for; but those by which others say that it should stop
 * are ignored: when to stop is for the client to say, and whoever signals a whole group or systemd unit has told it as well. */
static void mpw_start_settle_signals(void)
{
    static const int unheeded[] = {SIGTERM, SIGINT, SIGHUP}, defaults[] = {SIGCHLD, SIGQUIT};
    struct sigaction action;
    for (int number = 1; number < NSIG; number++)
        if (sigaction(number, NULL, &action) == 0 && action.sa_handler != SIG_IGN && action.sa_handler != SIG_DFL)
            signal(number, SIG_DFL); /* a handler of the client's would run in its memory */
    for (size_t i = 0; i < sizeof defaults / sizeof *defaults; i++)
        signal(defaults[i], SIG_DFL);
    for (size_t i = 0; i < sizeof unheeded / sizeof *unheeded; i++)
        signal(unheeded[i], SIG_IGN);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Have no controlling terminal, nor what is started from here: a task that asks it for a password fails and is not stopped.
 * A session of our own would do the same. But Linux's autogroup scheduling makes every session a group of its own, and
 * groups were seen to starve each other: docs/architecture.md, under Decisions. */
static void mpw_start_leave_terminal(void)
{
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return; /* there is none */
    ioctl(fd, TIOCNOTTY);
    close(fd);
}

/* Have three standard streams, and no input: a child must not eat the client's. Where the client runs without one, or has
 * at its number what an exec closes, that number must not go to what is opened or received next. */
static int mpw_start_settle_streams(void)
{
    int opened = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (opened < 0)
        return -1;
    int null = fcntl(opened, F_DUPFD_CLOEXEC, MPW_START_NURSERY_FD + 1);
    if (null < 0)
        return -1;
    if (opened > STDERR_FILENO)
        close(opened);
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        int flags = fcntl(fd, F_GETFD);
        if ((fd == STDIN_FILENO || flags < 0 || flags & FD_CLOEXEC) && dup2(null, fd) < 0)
            return -1;
    }
    return 0;
}

/* In the second child: be the nursery. */
static void mpw_start_exec_nursery(const mpw_start *start)
{
    if (dup2(start->nursery_end, MPW_START_FD) < 0)
        _exit(127);
    mpw_start_close_from(MPW_START_FD + 1);
    execve(start->path, start->nursery, start->environment);
    _exit(127);
}

/* A function of its own, whose frame no other child of a vfork is still to return to. 0 where there is no nursery. */
static __attribute__((noinline)) pid_t mpw_start_nursery(const mpw_start *start)
{
    if (!start->nursery)
        return 0;
    pid_t pid = vfork();
    if (pid == 0)
        mpw_start_exec_nursery(start);
    return pid < 0 ? 0 : pid; /* then the supervisor tries it, and counts from there on */
}

/* In the first child: be the supervisor, or say in `error` why that cannot be. */
static void mpw_start_exec_supervisor(mpw_start *start, volatile int *error)
{
    int *const ends[] = {&start->client_end, &start->supervisor_end, &start->nursery_end};
    pid_t nursery = 0;
    setpgid(0, 0);
    mpw_start_settle_signals();
    mpw_start_leave_terminal();
    for (size_t i = 0; i < (start->nursery ? 3 : 1); i++) /* out of the way of each other and of the streams */
        if ((*ends[i] = fcntl(*ends[i], F_DUPFD_CLOEXEC, MPW_START_NURSERY_FD + 1)) < 0)
            goto failed;
    if (mpw_start_settle_streams() < 0)
        goto failed;
    nursery = mpw_start_nursery(start);
    mpw_start_write_pid(start->supervisor[start->pid_at], nursery);
    if (dup2(start->client_end, MPW_START_FD) < 0 || (nursery && dup2(start->supervisor_end, MPW_START_NURSERY_FD) < 0))
        goto failed;
    mpw_start_close_from(nursery ? MPW_START_NURSERY_FD + 1 : MPW_START_FD + 1);
    execve(start->path, start->supervisor, start->environment);
failed:
    *error = errno;
    if (nursery) {
        kill(nursery, SIGKILL);
        waitpid(nursery, NULL, 0);
    }
    _exit(127);
}

/* The supervisor's process id; -1 with errno, and no process left. */
static __attribute__((noinline)) pid_t mpw_start_both(mpw_start *start)
{
    sigset_t all, before;
    volatile int error = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = vfork();
    if (pid == 0)
        mpw_start_exec_supervisor(start, &error);
    if (pid < 0)
        error = errno;
    else if (error)
        waitpid(pid, NULL, 0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return error ? -1 : pid;
}

#endif
