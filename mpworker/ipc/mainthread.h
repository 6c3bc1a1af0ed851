/* mpworker.ipc._native, the part that brings signals to the main thread: for `_native.c` to include.
 *
 * Signals of a process go to any of its threads that does not block them. A library's threads (BLAS, OpenMP) block none, and
 * what Python and faulthandler do in a handler is right in the main thread alone: CPython 3.11 wakes no other from there, and
 * a stack would be that of a thread without Python. So whichever thread it comes to hands it on.
 *
 * What faulthandler writes goes on where it ended before. Where each stack is to take the place of the last one, the file is
 * set back first, here and not in Python, which may not run for as long as the task likes.
 */
#include <signal.h>
#include <unistd.h>

/* What is done in the main thread; written before the handler is in place. */
static struct {
    void (*handler)(int);
    bool sets_back; /* this descriptor, to there, before */
    int fd;
    off_t start;
} on_signal[NSIG];

static void to_main_thread(int number)
{
    int error = errno;
    pid_t pid = getpid();
    if (gettid() == pid) {
        if (on_signal[number].sets_back)
            (void)lseek(on_signal[number].fd, on_signal[number].start, SEEK_SET); /* a task may close what it likes */
        on_signal[number].handler(number);
    }
    else
        tgkill(pid, pid, number);
    errno = error;
}

static PyObject *native_to_main_thread(PyObject *Py_UNUSED(module), PyObject *args)
{
    struct sigaction action;
    int number, fd = -1;
    long long start = 0;
    if (!PyArg_ParseTuple(args, "i|iL:to_main_thread", &number, &fd, &start))
        return NULL;
    if (number < 1 || number >= NSIG || sigaction(number, NULL, &action) < 0)
        return PyErr_Format(PyExc_ValueError, "%d is no signal", number);
    if (action.sa_flags & SA_SIGINFO || action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)
        return PyErr_Format(PyExc_ValueError, "signal %d has no handler that takes its number alone", number);
    if (action.sa_handler == to_main_thread)
        return none();
    on_signal[number].handler = action.sa_handler;
    on_signal[number].sets_back = fd >= 0;
    on_signal[number].fd = fd;
    on_signal[number].start = (off_t)start;
    action.sa_handler = to_main_thread;
    if (sigaction(number, &action, NULL) < 0)
        return os_error(errno, "sigaction");
    return none();
}
